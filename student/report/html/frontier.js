/* page.Frontier: reward against KL to the reference, a path for every run. Up and to the left is better. */
"use strict";

page.Frontier = (() => {
  const { Chart, STEPS_SIZE, axisOf, lineOf, smoothed, stepText, valueText } = page.curves;
  const HEIGHT = 320;

  /* From the lowest to the highest value of one coordinate, with some room. */
  function rangeOf(points, coordinate) {
    let low = Infinity;
    let high = -Infinity;
    for (const point of points) {
      low = Math.min(low, point[coordinate]);
      high = Math.max(high, point[coordinate]);
    }
    if (low > high) return [0, 1];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low - room, high + room];
  }

  return class Frontier extends Chart {
    constructor(host, across, up, runs, look) {
      super(host, runs, look);
      this.across = across;
      this.up = up;
    }

    /* [x, y, step] of a run that is shown, at every step that has both figures. */
    path(run, number) {
      const across = run.figures[this.across.name];
      const up = run.figures[this.up.name];
      if (across === undefined || up === undefined || !this.look.shown[number]) return [];
      const high = smoothed(up.mean, this.look.smooth);
      const at = new Map(run.axes[up.axis].map((step, place) => [step, high[place]]));
      const xs = smoothed(across.mean, this.look.smooth);
      const points = run.axes[across.axis].map((step, place) => [xs[place], at.get(step), step]);
      return points.filter(([x, y]) => typeof x === "number" && typeof y === "number");
    }

    draw() {
      this.paths = this.runs.map((run, number) => this.path(run, number));
      const all = this.paths.flat();
      const [x, y] = [rangeOf(all, 0), rangeOf(all, 1)];
      const options = {
        ...this.base(HEIGHT),
        scales: { x: { time: false, range: x }, y: { range: y } },
        cursor: { drag: { x: false, y: false }, points: { show: false } },
        axes: [axisOf(this.across, this.across.heading, STEPS_SIZE), axisOf(this.up, this.up.heading, 66)],
        series: [{}, { points: { show: false } }],
        hooks: { draw: [(plot) => this.paint(plot)], setCursor: [(plot) => this.tell(plot)] },
      };
      this.area.replaceChildren();
      this.plot = new uPlot(options, [x, [null, null]], this.area);
    }

    paint(plot) {
      const pen = plot.ctx;
      const ratio = devicePixelRatio;
      pen.save();
      this.paths.forEach((path, number) => {
        if (path.length === 0) return;
        const { colour, dash } = lineOf(number);
        pen.strokeStyle = colour;
        pen.fillStyle = colour;
        pen.lineWidth = 2 * ratio;
        pen.setLineDash(dash.map((length) => length * ratio));
        pen.beginPath();
        for (const [x, y] of path) pen.lineTo(plot.valToPos(x, "x", true), plot.valToPos(y, "y", true));
        pen.stroke();
        const [x, y] = path.at(-1);
        pen.beginPath();
        pen.arc(plot.valToPos(x, "x", true), plot.valToPos(y, "y", true), 4 * ratio, 0, 2 * Math.PI);
        pen.fill();
      });
      pen.restore();
    }

    /* The point that is nearest to the cursor, in words. */
    tell(plot) {
      const { left, top } = plot.cursor;
      this.told.textContent = "";
      let best = null;
      let nearest = left < 0 ? -1 : Infinity;
      this.paths.forEach((path, number) => {
        for (const point of path) {
          const away = Math.hypot(plot.valToPos(point[0], "x") - left, plot.valToPos(point[1], "y") - top);
          if (away < nearest) [nearest, best] = [away, [number, ...point]];
        }
      });
      if (best === null) return;
      const [number, x, y, step] = best;
      const values = `${this.up.label} ${valueText(this.up, y)}, ${this.across.label} ${valueText(this.across, x)}`;
      this.told.textContent = `run ${number + 1}, step ${stepText(step)}: ${values}`;
    }

    smooth() {
      this.draw();
    }

    toggle() {
      this.draw();
    }
  };
})();
