/* The page of runs: legend and controls, a chart for every figure, and the same numbers as tables. */
"use strict";

(() => {
  const { el, svg, data } = page;
  const { Curves, lineOf } = page.curves;
  const { runs } = data;
  const figures = new Map(data.figures.map((figure) => [figure.name, figure]));
  const look = { smooth: 0, log: false, shown: runs.map(() => true) };
  const charts = [];
  let waiting = 0;

  /* Charts that have been drawn do this, once for many events of a slider. */
  function all(work) {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => charts.filter((chart) => chart.plot !== null).forEach(work));
  }

  /* A chart is drawn when it comes near the screen. */
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        const chart = charts[Number(target.dataset.chart)];
        if (isIntersecting && chart.plot === null) chart.draw();
      }
    },
    { rootMargin: "600px" },
  );

  function addChart(root, title, meaning, make) {
    const host = el("figure", { dataset: { chart: charts.length } });
    host.append(el("figcaption", {}, el("b", {}, title), el("span", { class: "quiet" }, meaning)));
    root.append(host);
    charts.push(make(host));
    near.observe(host);
  }

  function figureChart(root, name) {
    const figure = figures.get(name);
    const good = figure.good === null ? "" : `, ${figure.good} is better`;
    addChart(root, figure.label + good, figure.meaning, (host) => new Curves(host, figure, runs, look));
  }

  function frontier(root) {
    const [across, up] = data.frontier.map((name) => figures.get(name));
    const meaning =
      "what a run gains, and what it pays, smoothed; the large dot is the last step; up and left is better";
    addChart(
      root,
      `${up.label} against ${across.label}`,
      meaning,
      (host) => new page.Frontier(host, across, up, runs, look),
    );
  }

  function swatch(number) {
    const { dash, mark } = lineOf(number);
    const line = { x1: 1, x2: 43, y1: 6, y2: 6, "stroke-width": 3, "stroke-dasharray": dash.join(" "), class: mark };
    return svg("svg", { width: 44, height: 12, "aria-hidden": "true" }, svg("line", line));
  }

  function legendLine(run, number) {
    const toggle = ({ target }) => {
      look.shown[number] = target.checked;
      all((drawn) => drawn.toggle());
    };
    const box = el("input", { type: "checkbox", checked: true, on: { change: toggle } });
    const texts = [el("b", {}, `run ${number + 1}`), el("span", { class: "name" }, run.name)];
    const status = el("div", { class: "quiet" }, run.status, run.note ? `; ${run.note}` : "");
    return el("li", {}, el("label", {}, box, swatch(number), ...texts), status);
  }

  function setLog({ target }) {
    look.log = target.checked;
    all((drawn) => drawn.draw());
  }

  function controls() {
    const told = el("output", {}, "off");
    const pull = ({ target }) => {
      look.smooth = Number(target.value);
      told.textContent = look.smooth === 0 ? "off" : target.value;
      all((drawn) => drawn.smooth());
    };
    const range = { id: "smoothing", type: "range", min: 0, max: 0.99, step: 0.01, value: 0, on: { input: pull } };
    const slider = el("label", {}, el("span", {}, "smoothing ", told), el("input", range));
    const log = el("input", { id: "log", type: "checkbox", on: { change: setLog } });
    return el(
      "div",
      { class: "controls" },
      slider,
      el("label", { class: "line" }, log, "logarithmic axis for loss and KL"),
    );
  }

  /* A table whose first column says what a row is about; the others are runs. */
  function table(label, rows) {
    const heads = [label, ...runs.map((run, number) => `run ${number + 1}`)];
    const head = el("tr", {}, ...heads.map((text) => el("th", {}, text)));
    const body = rows.map((row) => el("tr", {}, ...row.map((text) => el("td", {}, text))));
    return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
  }

  page.section("runs", null, (root) => {
    root.append(el("ul", { class: "legend" }, runs.map(legendLine)));
    if (data.differing.length > 0) root.append(el("h2", {}, "What differs"), table("option", data.differing));
    if (data.thinned !== "") root.append(el("p", { class: "quiet" }, data.thinned));
    root.append(controls());
  });

  page.section("curves", "Curves", (root) => {
    const grid = el("div", { class: "grid" });
    root.append(grid);
    for (const name of data.main) {
      if (name === "frontier") frontier(grid);
      else figureChart(grid, name);
    }
    new ResizeObserver(() => all((drawn) => drawn.resize())).observe(grid);
  });

  page.section("evaluation", data.evaluation.length > 0 ? "Evaluation" : null, (root) => {
    const grid = el("div", { class: "grid" });
    root.append(grid);
    for (const name of data.evaluation) figureChart(grid, name);
  });

  page.section("more", null, (root) => {
    const grid = el("div", { class: "grid" });
    root.append(el("details", {}, el("summary", {}, "More figures"), grid));
    for (const name of data.more) figureChart(grid, name);
  });

  page.section("numbers", "From begin to end", (root) => {
    root.append(el("p", { class: "quiet" }, data.way), table("figure", data.numbers));
    root.append(el("details", {}, el("summary", {}, "All recorded options"), table("option", data.options)));
  });

  function onPaper(paper) {
    document.documentElement.classList.toggle("paper", paper);
    for (const drawn of charts) if (drawn.area.clientWidth > 0) drawn.draw();
  }
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all((drawn) => drawn.draw()));
})();
