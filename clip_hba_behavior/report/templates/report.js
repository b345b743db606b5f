"use strict";
// Draws every figure of the page in the theme that the reader's system asks for, and again when that changes.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const { themes, plots } = JSON.parse(document.getElementById("figures").textContent);
  const settings = {
    displaylogo: false,
    showSendToCloud: false,
    responsive: true,
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };

  function colour(name, theme) {
    const [key, opacity] = name.slice(1).split("/");
    if (opacity === undefined) return theme[key];
    const parts = [1, 3, 5].map((place) => parseInt(theme[key].slice(place, place + 2), 16));
    return `rgba(${parts.join(",")},${opacity})`;
  }

  // Plotly keeps what it is given, so each drawing gets a copy.
  function coloured(value, theme, key = "") {
    if (typeof value === "string" && value[0] === "@" && key.endsWith("color")) return colour(value, theme);
    if (Array.isArray(value)) return value.map((each) => coloured(each, theme));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, theme, name)]));
  }

  function draw() {
    const theme = themes[dark.matches ? "dark" : "light"];
    for (const [id, plot] of Object.entries(plots)) {
      Plotly.react(id, coloured(plot.data, theme), coloured(plot.layout, theme), settings);
    }
  }

  dark.addEventListener("change", draw);
  draw();
})();
