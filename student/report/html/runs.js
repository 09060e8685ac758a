"use strict";
// The page of runs: reads its data, draws a chart for every figure, and obeys the legend, the slider and the log box.

const HEIGHT = 240;

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** A piece of a run's line, for the legend. */
function swatch(number) {
  const { dash } = lineOf(number);
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg"), line = document.createElementNS(space, "line");
  for (const [name, value] of Object.entries({ width: 44, height: 12, "aria-hidden": "true" })) {
    svg.setAttribute(name, value);
  }
  const drawn = { x1: 1, x2: 43, y1: 6, y2: 6, "stroke-width": 3, "stroke-dasharray": dash.join(" ") };
  for (const [name, value] of Object.entries(drawn)) line.setAttribute(name, value);
  line.setAttribute("class", `run-${number % COLOURS}`);
  svg.append(line);
  return svg;
}

class Page {
  constructor(data) {
    this.data = data;
    this.figures = new Map(data.figures.map((figure) => [figure.name, figure]));
    this.look = { smooth: 0, log: false, shown: data.runs.map(() => true) };
    this.charts = [];
  }

  legend(host) {
    this.data.runs.forEach((run, number) => {
      const label = element("label", "", "run"), box = element("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        this.look.shown[number] = box.checked;
        for (const chart of this.charts) if (chart.plot) chart.toggle(number);
      });
      label.append(box, swatch(number), element("b", `run ${number + 1}`), element("span", run.name, "name"));
      label.append(element("span", run.status, "status"));
      host.append(label);
    });
  }

  /** One redraw for many events of a slider that is being pulled. */
  later(work) {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(work);
  }

  controls() {
    const slider = document.getElementById("smoothing"), told = document.getElementById("smoothing-told");
    slider.addEventListener("input", () => {
      this.look.smooth = Number(slider.value);
      told.textContent = this.look.smooth ? slider.value : "off";
      this.later(() => this.charts.forEach((chart) => chart.plot && chart.smooth()));
    });
    const box = document.getElementById("log");
    box.addEventListener("change", () => {
      this.look.log = box.checked;
      this.redraw();
    });
  }

  redraw() {
    for (const chart of this.charts) if (chart.plot) chart.draw();
  }

  /** A chart in a section of its own. It is drawn when it comes near the screen. */
  add(host, title, meaning, make) {
    const section = element("section", "", "chart");
    section.append(element("h3", title), element("p", meaning, "meaning"));
    host.append(section);
    const chart = make(section);
    section.chart = chart;
    this.charts.push(chart);
    this.watch.observe(section);
  }

  figure(host, name) {
    const figure = this.figures.get(name);
    const good = figure.good ? `: ${figure.good} is better` : "";
    const make = (section) => new Curves(section, figure, this.data.runs, this.look, HEIGHT);
    this.add(host, figure.label + good, figure.meaning, make);
  }

  frontier(host) {
    const [across, up] = this.data.frontier.map((name) => this.figures.get(name));
    const make = (section) => new Frontier(section, across, up, this.data.runs, this.look, 320);
    this.add(host, `${up.label} against ${across.label}`, "What a run gains, and what it pays: up and left is better.", make);
  }

  start() {
    this.watch = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting && !target.chart.plot) target.chart.draw();
      }
    }, { rootMargin: "400px" });
    this.legend(document.getElementById("legend"));
    this.controls();
    const charts = document.getElementById("charts"), more = document.getElementById("more");
    for (const name of this.data.main) name === "frontier" ? this.frontier(charts) : this.figure(charts, name);
    for (const name of this.data.more) this.figure(more, name);
    new ResizeObserver(() => this.later(() => this.charts.forEach((chart) => chart.resize()))).observe(charts);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    const drawAll = () => this.charts.forEach((chart) => chart.area.clientWidth && chart.draw());
    addEventListener("beforeprint", () => {
      document.documentElement.classList.add("paper");
      drawAll();
    });
    addEventListener("afterprint", () => {
      document.documentElement.classList.remove("paper");
      drawAll();
    });
  }
}
