/* page.curves: charts of figures over the steps, drawn by uPlot. Runs lie over each other; thinned ones have a band. */
"use strict";

page.curves = (() => {
  /* Dashes tell runs apart where colour does not; colours are the style sheet's, which knows light, dark and print. */
  const DASHES = [[], [9, 4], [2, 3], [12, 3, 2, 3], [6, 2], [16, 5, 5, 5]];
  const COLOURS = 8;
  const FONT = "12px system-ui, sans-serif";
  const HEIGHT = 230;
  const STEPS_SIZE = 32; /* of the axis below a chart, without its label */
  const VALUES_SIZE = 72; /* of the one beside it, without its label */

  function colourOf(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function lineOf(number) {
    const place = number % COLOURS;
    return { colour: colourOf(`--run-${place}`), dash: DASHES[number % DASHES.length], mark: `run-${place}` };
  }

  /* A value with three digits that count, as Python prints the figure, with a true minus sign. */
  function valueText(figure, value) {
    if (value === null || value === undefined) return "not a number";
    if (figure.unit === "share") return `${(100 * value).toFixed(2)} %`;
    const size = Math.abs(value);
    let text = String(Number(size.toPrecision(3)));
    if (size >= 1000) text = Math.round(size).toLocaleString("en-US");
    else if (size > 0 && size < 1e-4) text = size.toExponential(2).replace("-", "−");
    if (value < 0) return `−${text}`;
    return figure.signed && value > 0 ? `+${text}` : text;
  }

  /* An exponential moving average without the pull of its start. What is not a number stays a gap. */
  function smoothed(values, weight) {
    if (weight === 0) return values;
    let sum = 0;
    let total = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  /* Columns over the steps of the runs that are shown: of each run the curve, its values unsmoothed, lowest, highest. */
  function columnsOf(runs, shown, name, weight, log) {
    const legal = (values) => (log ? values.map((value) => (value > 0 ? value : null)) : values);
    const tables = runs.map((run, number) => {
      const found = run.figures[name];
      if (found === undefined || !shown[number]) return [[], [], [], [], []];
      const { axis, mean, low, high } = found;
      const none = mean.map(() => null);
      const columns = [smoothed(mean, weight), weight ? mean : none, low ?? none, high ?? none];
      return [run.axes[axis], ...columns.map(legal)];
    });
    return uPlot.join(tables);
  }

  function seriesOf(runs) {
    const series = [{}];
    runs.forEach((run, number) => {
      const { colour, dash } = lineOf(number);
      const line = { width: 1, stroke: `${colour}00`, points: { show: false } };
      const points = { size: 5, stroke: colour, fill: colour };
      series.push({ width: 2, stroke: colour, dash, points }, { ...line, stroke: `${colour}66` }, line, line);
    });
    return series;
  }

  function axisOf(figure, label, size) {
    const lines = { stroke: colourOf("--line"), width: 1 };
    const colour = colourOf("--text");
    const values = (plot, ticks) => ticks.map((tick) => (tick === null ? "" : valueText(figure, tick)));
    return {
      stroke: colour,
      grid: lines,
      ticks: lines,
      font: FONT,
      labelFont: FONT,
      labelSize: 16,
      label,
      size,
      values,
    };
  }

  function stepText(step) {
    return step.toLocaleString("en-US");
  }

  /* What both kinds of charts share: a place in the page, a line of words below, and when they are drawn. */
  class Chart {
    constructor(host, runs, look) {
      this.runs = runs;
      this.look = look;
      this.plot = null;
      this.area = page.el("div", { class: "area" });
      this.told = page.el("p", { class: "told quiet" });
      host.append(this.area, this.told);
    }

    base(height) {
      const width = this.area.clientWidth || 320;
      return { width, height, padding: [10, 30, 0, 0], legend: { show: false } };
    }

    resize() {
      const width = this.area.clientWidth;
      if (this.plot !== null && width > 0) this.plot.setSize({ width, height: this.plot.height });
    }
  }

  /* One figure over the steps. */
  class Curves extends Chart {
    constructor(host, figure, runs, look) {
      super(host, runs, look);
      this.figure = figure;
    }

    get log() {
      return this.look.log && this.figure.log;
    }

    columns() {
      return columnsOf(this.runs, this.look.shown, this.figure.name, this.look.smooth, this.log);
    }

    draw() {
      const steps = axisOf({}, "step", STEPS_SIZE);
      steps.values = (plot, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? stepText(tick) : ""));
      const bands = this.runs.flatMap((run, number) =>
        run.figures[this.figure.name]?.low === undefined
          ? []
          : [{ series: [4 * number + 4, 4 * number + 3], fill: `${lineOf(number).colour}33` }],
      );
      const options = {
        ...this.base(HEIGHT),
        scales: { x: { time: false }, y: { distr: this.log ? 3 : 1 } },
        cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
        axes: [steps, axisOf(this.figure, this.figure.unit, VALUES_SIZE)],
        series: seriesOf(this.runs),
        bands,
        hooks: { setCursor: [() => this.tell()] },
      };
      this.area.replaceChildren();
      this.plot = new uPlot(options, this.columns(), this.area);
    }

    /* The values under the cursor, or the last ones before it. */
    tell() {
      const at = this.plot?.cursor.idx;
      this.told.textContent = "";
      if (at === null || at === undefined) return;
      const texts = this.runs.flatMap((run, number) => {
        const column = this.plot.data[4 * number + 1];
        let place = at;
        while (place > 0 && typeof column[place] !== "number") place -= 1;
        if (typeof column[place] !== "number") return [];
        return [`run ${number + 1}: ${valueText(this.figure, column[place])}`];
      });
      this.told.textContent = `step ${stepText(this.plot.data[0][at])}: ${texts.join(", ")}`;
    }

    smooth() {
      this.plot.setData(this.columns(), false);
      this.plot.redraw(true);
    }

    toggle() {
      this.plot.setData(this.columns(), true);
    }
  }

  return { Chart, Curves, STEPS_SIZE, VALUES_SIZE, axisOf, lineOf, smoothed, stepText, valueText };
})();
