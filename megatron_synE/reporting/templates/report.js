"use strict";
// Draws the charts of the JSON in #report, in the page's colours of the moment, with a legend of buttons under each.
(function () {
  const report = JSON.parse(document.getElementById("report").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: touch ? false : "reset",
  };

  function colour(name) {
    return name.startsWith("--") ? getComputedStyle(document.documentElement).getPropertyValue(name).trim() : name;
  }

  // A copy with every name of a CSS variable looked up.
  function painted(value) {
    if (typeof value === "string") return colour(value);
    if (Array.isArray(value)) return value.length && typeof value[0] === "number" ? value : value.map(painted);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, key === "meta" ? item : painted(item)]));
  }

  function axis(own) {
    return {
      gridcolor: colour("--rule"), linecolor: colour("--rule"), tickcolor: colour("--rule"), ...own,
      title: { ...(own.title || {}), font: { size: 12, color: colour("--muted") }, standoff: 8 },
    };
  }

  function layout(chart) {
    const own = painted(chart.layout);
    for (const name of Object.keys(own)) if (/^[xy]axis/.test(name)) own[name] = axis(own[name]);
    return {
      ...own,
      autosize: true, showlegend: false, hovermode: "closest", dragmode: touch ? false : "zoom",
      margin: { l: 56, r: 10, t: 16, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--rule"), font: { color: colour("--ink") }, namelength: 40 },
    };
  }

  // One button for each name; traces of one name (a topic's two curves) are shown and hidden together.
  function legend(chart, box, place) {
    if (!chart.has_legend) return;
    const hidden = new Set();
    for (const name of new Set(chart.data.map((trace) => trace.meta.name))) {
      const first = chart.data.find((trace) => trace.meta.name === name);
      const button = document.createElement("button");
      const sample = document.createElement("i");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      if (first.meta.glyph) { sample.className = "mark"; sample.textContent = first.meta.glyph; }
      else sample.style.background = first.line.color.startsWith("--") ? `var(${first.line.color})` : first.line.color;
      button.append(sample, name);
      button.addEventListener("click", () => {
        if (hidden.has(name)) hidden.delete(name); else hidden.add(name);
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
        Plotly.restyle(box, { visible: chart.data.map((trace) => !hidden.has(trace.meta.name)) });
      });
      place.append(button);
    }
  }

  const drawn = [];
  async function draw() {
    for (const box of document.querySelectorAll("[data-chart]")) {
      const chart = report.charts.find((one) => one.name === box.dataset.chart);
      await Plotly.newPlot(box, painted(chart.data), layout(chart), config);
      legend(chart, box, document.querySelector(`[data-legend="${CSS.escape(box.dataset.chart)}"]`));
      drawn.push([box, chart]);
      await new Promise((resume) => setTimeout(resume)); // the page stays usable meanwhile
    }
    document.documentElement.dataset.charts = "drawn";
  }
  dark.addEventListener("change", () => {
    for (const [box, chart] of drawn) {
      const visible = box.data.map((trace) => trace.visible);
      Plotly.react(box, painted(chart.data).map((trace, place) => ({ ...trace, visible: visible[place] })), layout(chart), config);
    }
  });
  draw();
})();
