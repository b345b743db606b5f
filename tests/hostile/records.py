"""Configurations, results and ledgers that mean harm."""

from hostile.files import CANARY, Build, bytes_of

# --- configurations --------------------------------------------------------------------------------------


def yaml_laughs(key: str) -> bytes:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 15)]
    return "\n".join([*lines, f"{key}: *a14"]).encode()


def yaml_merges() -> bytes:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 15)]
    return "\n".join(lines).encode()


CONFIGS: list[tuple[str, Build]] = [
    ("is no YAML file", bytes_of("code", f"a: !!python/object/apply:os.system ['touch {CANARY}']\n".encode())),
    (
        "is no YAML file",
        bytes_of("code_by_name", f"a: !!python/object/new:os.system ['touch {CANARY}']\n".encode()),
    ),
    ("an alias stands for", bytes_of("laughs", yaml_laughs("lr"))),
    ("an alias stands for", bytes_of("laughs_of_augmentation", yaml_laughs("augmentation"))),
    ("an alias stands for", bytes_of("merges", yaml_merges())),
    ("an alias stands for", bytes_of("circle", b"a: &a [*a]\n")),
    ("is no YAML file", bytes_of("flow_nesting", b"a: " + b"[" * 60_000)),
    ("is no YAML file", bytes_of("closed_nesting", b"a: " + b"[" * 20_000 + b"]" * 20_000)),
    ("is no YAML file", bytes_of("block_nesting", b"- " * 30_000 + b"a")),
    ("is no YAML file", bytes_of("mapping_nesting", b"{a: " * 10_000)),
    ("is no YAML file", bytes_of("digits", b"epochs: " + b"9" * 60_000)),
    ("63 bits", bytes_of("hexadecimal", b"epochs: 0x" + b"f" * 60_000)),
    ("63 bits", bytes_of("hexadecimal_float", b"lr: 0x" + b"f" * 60_000)),
    ("too long to show", bytes_of("hexadecimal_text", b"run_dir: [0x" + b"f" * 60_000 + b"]")),
    ("", bytes_of("sexagesimal", b"epochs: 1" + b":59" * 20_000)),
    ("no such key", bytes_of("long_key", b"? " + b"k" * 60_000 + b"\n: 1\n")),
    ("and ", bytes_of("many_keys", lambda: "\n".join(f"key{n}: {n}" for n in range(4000)).encode())),
    ("and ", bytes_of("many_items", b"augmentation: [" + b"x," * 20_000 + b"]")),
    ("found 'xxx", bytes_of("long_value", b"lr: " + b"x" * 60_000)),
    ("is no YAML file", bytes_of("empty_integer", b"epochs: !!int ''\n")),
    ("is no YAML file", bytes_of("bad_time", b"epochs: !!timestamp x\n")),
    ("is no YAML file", bytes_of("bad_truth", b"epochs: !!bool x\n")),
    ("is no YAML file", bytes_of("bad_bytes", b"epochs: !!binary '\xc3\xa9'\n")),
    ("is no YAML file", bytes_of("control", b"a: \x00\n")),
    ("is no YAML file", bytes_of("list_as_key", b"? [1, 2]\n: 3\n")),
    ("expected no NUL", bytes_of("nul_in_a_path", b'run_dir: "a\\0b"\n')),
    ("", bytes_of("half_a_pair", b'run_dir: "\\ud800"\n')),
    ("cannot be read", bytes_of("latin_1", b"run_dir: caf\xe9\n")),
    ("expected at most", bytes_of("a_megabyte", b"# \n" * 2**19)),
]

# --- results and ledgers ---------------------------------------------------------------------------------

RESULTS_HEADER = b"epoch,train_loss,val_loss,rsa_behavioral_corr,rsa_behavioral_p"
RESULTS: list[tuple[str, Build]] = [
    ("a row of more than", bytes_of("columns", lambda: RESULTS_HEADER + b"," * 10**6)),
    ("expected at most", bytes_of("many_columns", lambda: RESULTS_HEADER + b"," * 10**7)),
    ("found:    'x, x", bytes_of("other_columns", b"x," * 100_000)),
    ("not a number", bytes_of("long_cell", RESULTS_HEADER + b"\n" + b"9" * 100_000 + b"x,1,1,1,1\n")),
    ("not a number", bytes_of("infinite", RESULTS_HEADER + b"\n" + b"9" * 100_000 + b",1,1,1,1\n")),
    ("not a number", bytes_of("short_rows", RESULTS_HEADER + b"\n" + b"1\n" * 10**6)),
    ("is no results CSV", bytes_of("empty_lines", b"\n" * 10**6)),
]

LEDGERS: list[tuple[str, Build]] = [
    ("not a valid line", bytes_of("nesting", b"[" * 10**6)),
    (
        "not a valid line",
        bytes_of("nested_value", b'{"epoch": 1, "step": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}\n"),
    ),
    ("not a valid line", bytes_of("one_long_line", lambda: b"x" * 60 * 2**20)),
    ("not read further", bytes_of("empty_lines", lambda: b"\n" * 10**7)),
    ("not a valid line", bytes_of("infinite_epoch", b'{"epoch": 1e999, "step": 1}\n')),
    ("not a valid line", bytes_of("long_epoch", b'{"epoch": ' + b"9" * 5000 + b', "step": 1}\n')),
    ("not a valid line", bytes_of("list_as_step", b'{"epoch": 1, "step": [1]}\n')),
    ("not a valid line", bytes_of("state_5", b'{"epoch": 1, "step": "end", "state": 5}\n')),
    ("not a valid line", bytes_of("no_object", b"5\n[]\nnull\n")),
]
