"use strict";
// Charts of figures over the steps, drawn by uPlot: several runs over each other, smoothed, thinned ones with a band.

/** Colours come from the style sheet, which knows light, dark and print; dashes tell runs apart without colour. */
const DASHES = [[], [9, 4], [2, 3], [12, 3, 2, 3], [6, 2], [16, 5, 5, 5]];
const COLOURS = 8;

function lineOf(number) {
  const names = getComputedStyle(document.documentElement);
  const colour = names.getPropertyValue(`--run-${number % COLOURS}`).trim();
  return { colour, dash: DASHES[number % DASHES.length] };
}

function inkOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A number as a person reads it, in the figure's own way. */
function numberText(figure, value) {
  if (value === null || value === undefined) return "not a number";
  if (figure.unit === "share") return `${(100 * value).toFixed(2)}%`;
  const size = Math.abs(value);
  const text = size >= 1000 ? Math.round(value).toLocaleString("en-US")
    : size !== 0 && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  return figure.signed && value >= 0 ? `+${text}` : text;
}

/** Exponential moving average without the pull of its start; null stays null. */
function smoothed(values, weight) {
  if (weight === 0) return values;
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** The columns of a chart: steps, then for every run its curve, its values unsmoothed, its lowest and highest. */
function columnsOf(runs, name, look) {
  const positive = (values) => (look.log ? values.map((v) => (v !== null && v > 0 ? v : null)) : values);
  const tables = runs.map((run) => {
    const found = run.figures[name];
    if (!found) return [[], [], [], [], []];
    const { mean, low = mean, high = mean } = found;
    const raw = look.smooth ? mean : mean.map(() => null);
    const columns = [smoothed(mean, look.smooth), raw, low === mean ? raw : low, high === mean ? raw : high];
    return [run.axes[found.axis], ...columns.map(positive)];
  });
  return uPlot.join(tables);
}

function seriesOf(runs, shown) {
  const list = [{ label: "step" }];
  runs.forEach((run, number) => {
    const { colour, dash } = lineOf(number);
    const show = shown[number];
    const points = { show: false };
    list.push({ label: run.name, stroke: colour, dash, width: 2, show, points: { size: 5, stroke: colour } });
    list.push({ stroke: `${colour}55`, width: 1, show, points });
    list.push({ stroke: `${colour}00`, width: 0, show, points }, { stroke: `${colour}00`, width: 0, show, points });
  });
  return list;
}

function axesOf(figure) {
  const ink = inkOf("--ink"), grid = { stroke: inkOf("--grid"), width: 1 };
  const font = "12px system-ui, sans-serif";
  const steps = (u, ticks) => ticks.map((v) => (Number.isInteger(v) ? v.toLocaleString("en-US") : ""));
  const values = (u, ticks) => ticks.map((v) => (v === null ? "" : numberText(figure, v)));
  return [
    { stroke: ink, grid, ticks: grid, font, labelFont: font, label: "step", labelSize: 18, values: steps },
    { stroke: ink, grid, ticks: grid, font, labelFont: font, label: figure.unit, labelSize: 18, size: 64, values },
  ];
}

/** The values under the cursor, or the last before it, in words below the chart. */
function readOut(u, host, figure, runs, shown) {
  const at = u.cursor.idx;
  if (at === null || at === undefined) {
    host.textContent = "";
    return;
  }
  const told = runs.flatMap((run, number) => {
    const column = u.data[1 + 4 * number];
    let place = at;
    while (place > 0 && (column[place] === undefined || column[place] === null)) place -= 1;
    const value = column[place];
    return shown[number] && value !== undefined && value !== null
      ? [`run ${number + 1}: ${numberText(figure, value)}`] : [];
  });
  host.textContent = `step ${u.data[0][at].toLocaleString("en-US")}: ${told.join(", ")}`;
}

/** A figure over the steps, in `host`. look: {smooth, log, shown}, read again at every draw. */
class Curves {
  constructor(host, figure, runs, look, height) {
    Object.assign(this, { host, figure, runs, look, height, plot: null });
    this.told = document.createElement("p");
    this.told.className = "told";
    this.area = document.createElement("div");
    host.append(this.area, this.told);
  }

  draw() {
    const { figure, runs, look } = this;
    const bands = runs.flatMap((run, n) => (run.figures[figure.name]?.low
      ? [{ series: [4 + 4 * n, 3 + 4 * n], fill: `${lineOf(n).colour}2e` }] : []));
    const options = {
      width: this.area.clientWidth || 320,
      height: this.height,
      padding: [10, 14, 0, 0],
      legend: { show: false },
      scales: { x: { time: false }, y: { distr: look.log && figure.log ? 3 : 1 } },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      axes: axesOf(figure),
      series: seriesOf(runs, look.shown),
      bands,
      hooks: { setCursor: [(u) => readOut(u, this.told, figure, runs, look.shown)] },
    };
    this.area.replaceChildren();
    this.plot = new uPlot(options, this.columns(), this.area);
  }

  columns() {
    const { figure, look } = this;
    return columnsOf(this.runs, figure.name, { smooth: look.smooth, log: look.log && figure.log });
  }

  smooth() {
    this.plot.setData(this.columns(), false);
    this.plot.redraw(true);
  }

  toggle(number) {
    for (let part = 1; part <= 4; part += 1) {
      this.plot.setSeries(4 * number + part, { show: this.look.shown[number] });
    }
  }

  resize() {
    if (this.plot) this.plot.setSize({ width: this.area.clientWidth || 320, height: this.height });
  }
}
