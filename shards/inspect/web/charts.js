/* Charts with axes, as SVG: its text is text, it follows dark mode, and it prints as sharp as type.

   page.charts.bars({edges, counts, axis, logarithmic, signed})   shares of all in bars; signed: below 0 in orange
   page.charts.points({points, x, y})                             points [x, y, chosen] */
"use strict";

page.charts = (() => {
  const { svg } = page;
  const SIZE = { width: 400, height: 220, left: 52, right: 12, top: 10, bottom: 44 };

  /* Round numbers from low to high, about `wanted` of them. */
  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough * 0.999);
    const first = Math.ceil(low / step - 1e-9);
    const count = Math.floor(high / step + 1e-9) - first + 1;
    return Array.from({ length: Math.max(count, 0) }, (_, i) => (first + i) * step);
  }

  /* Powers of ten from low to high, no more than seven. */
  function decades(low, high) {
    const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
    const step = Math.max(1, Math.ceil((last - first) / 6));
    const found = [];
    for (let power = first; power <= last; power += step) found.push(10 ** power);
    return found.length > 1 ? found : [low, high];
  }

  const label = (value) =>
    (Math.abs(value) >= 1e4 ? value.toLocaleString("en") : String(Number(value.toPrecision(3)))).replace("-", "−");

  /* From values to places, linear or logarithmic. */
  function scale(low, high, from, to, logarithmic = false) {
    const at = logarithmic ? (value) => Math.log(Math.max(value, low)) : Number;
    const width = at(high) - at(low) || 1;
    return (value) => from + ((at(value) - at(low)) / width) * (to - from);
  }

  const text = (x, y, anchor, content, extra = {}) => svg("text", { x, y, "text-anchor": anchor, ...extra }, content);

  /* Lines and numbers of both axes. y_label: the text of a number on the vertical one. */
  function axes(x, x_ticks, x_title, y, y_ticks, y_title, y_label = label) {
    const { width, height, left, right, top, bottom } = SIZE;
    const made = [];
    for (const value of y_ticks) {
      const at = y(value).toFixed(1);
      made.push(
        svg("line", { x1: left, x2: width - right, y1: at, y2: at, class: value === 0 ? "axis" : "grid" }),
        text(left - 6, Number(at) + 4, "end", y_label(value)),
      );
    }
    const base = height - bottom;
    made.push(svg("line", { x1: left, x2: width - right, y1: base, y2: base, class: "axis" }));
    for (const value of x_ticks) {
      const at = x(value).toFixed(1);
      made.push(
        svg("line", { x1: at, x2: at, y1: base, y2: base + 4, class: "axis" }),
        text(at, base + 17, "middle", label(value), { class: "tick" }),
      );
    }
    made.push(text((left + width - right) / 2, height - 6, "middle", x_title, { class: "title" }));
    const middle = (top + base) / 2;
    made.push(text(12, middle, "middle", y_title, { class: "title", transform: `rotate(-90 12 ${middle})` }));
    return made;
  }

  const frame = (name, ...parts) =>
    svg(
      "svg",
      { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, class: "chart", role: "img", "aria-label": name },
      ...parts,
    );

  function bars({ edges, counts, axis, logarithmic = false, signed = false, unit = "positions" }) {
    const { width, height, left, right, top, bottom } = SIZE;
    const total = counts.reduce((sum, count) => sum + count, 0);
    const known = edges.map((edge) => (logarithmic && edge <= 0 ? edges.find((other) => other > 0) / 2 : edge));
    const [low, high] = [known[0], known.at(-1)];
    const highest = Math.max(...counts) / total;
    const x = scale(low, high, left, width - right, logarithmic);
    const y = scale(0, highest, height - bottom, top);
    const x_ticks = logarithmic ? decades(low, high) : ticks(low, high, 5);
    const drawn = counts.map((count, i) => {
      if (count === 0) return null;
      const [begin, end] = [x(known[i]), x(known[i + 1])];
      const tall = Math.max(height - bottom - y(count / total), 1);
      const share = `${label(edges[i])} to ${label(edges[i + 1])}: ${count.toLocaleString("en")} (${((100 * count) / total).toFixed(1)} %)`;
      const place = {
        x: begin.toFixed(2),
        width: Math.max(end - begin - 0.6, 0.6).toFixed(2),
        y: (height - bottom - tall).toFixed(2),
        height: tall.toFixed(2),
      };
      return svg("rect", { ...place, class: signed && edges[i] < 0 ? "bar down" : "bar" }, svg("title", {}, share));
    });
    const percent = (value) => `${label(100 * value)} %`;
    return frame(
      axis,
      axes(x, x_ticks, axis, y, ticks(0, highest, 4), `share of ${unit}`, percent),
      drawn.filter(Boolean),
    );
  }

  function points({ points: all, x: x_title, y: y_title }) {
    const { width, height, left, right, top, bottom } = SIZE;
    const [xs, ys] = [0, 1].map((place) => all.map((point) => point[place]));
    const [low, high] = [Math.min(0, ...ys), Math.max(0, ...ys)];
    const x = scale(0, Math.max(...xs), left, width - right);
    const y = scale(low, high, height - bottom, top);
    // one path for all of a colour: a dot is a line of no length with round ends
    const dots = [true, false].map((chosen) => {
      const places = all.filter((point) => point[2] === chosen);
      const d = places.map(([length, reward]) => `M${x(length).toFixed(1)} ${y(reward).toFixed(1)}h0`).join("");
      return svg("path", { d, class: chosen ? "dots" : "dots down" });
    });
    return frame(
      `${y_title} against ${x_title}`,
      axes(x, ticks(0, Math.max(...xs), 5), x_title, y, ticks(low, high, 5), y_title),
      dots,
    );
  }

  return { bars, points, ticks, decades, label };
})();
