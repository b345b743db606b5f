"""Pages that show what runs did, and the same figures for a paper.

To add a page: make a `Page` (`blocks.py`) of sections, whose parts are figures (`figure.py`), facts, tables and
what is missing, and give it to `render_site` (`site.py`), which returns every file of the report by its name. A
figure is described once; `plotly_json.py` draws it on the page and `paper.py` for a paper. `commands.py` says of
each path what it is (`sources.py`), builds the pages, and has `output.py` write them.
"""
