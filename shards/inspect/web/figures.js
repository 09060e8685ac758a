/* Figures of the whole cache: preferences, lengths, distributions, and bytes by column. */
"use strict";

(() => {
  const { el, data } = page;
  const { preferences, lengths, distributions, columns, survey } = data.about;

  const figure = (title, chart, ...notes) =>
    el(
      "figure",
      {},
      el("figcaption", {}, title),
      chart,
      notes.map((note) => el("p", { class: "quiet" }, note)),
    );
  const table = (heads, rows) =>
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            heads.map(([name, kind]) => el("th", { class: kind }, name)),
          ),
        ),
        el(
          "tbody",
          {},
          rows.map((cells) =>
            el(
              "tr",
              {},
              cells.map((cell, i) => el("td", { class: heads[i][1] }, cell)),
            ),
          ),
        ),
      ),
    );

  function accuracy_table() {
    const heads = [
      ["by", ""],
      ["told right", "number"],
      ["pairs", "number"],
      ["sum over the tokens of", ""],
    ];
    return table(
      heads,
      preferences.accuracy.map(([name, share, pairs, what]) => [
        name,
        `${(100 * share).toFixed(1)} %`,
        pairs.toLocaleString("en"),
        what,
      ]),
    );
  }

  page.section("preferences", "Preferences and lengths", (root) => {
    root.append(el("p", { class: "quiet" }, `Measured on ${survey.on}.`));
    const figures = el("div", { class: "figures" });
    if (preferences !== null) {
      const { edges, counts } = preferences;
      figures.append(
        figure(
          "Margin of each pair",
          page.charts.bars({ edges, counts, axis: "reward of chosen minus rejected", signed: true, unit: "pairs" }),
          "Blue pairs are told right, orange ones wrong.",
        ),
      );
    }
    const { correlation } = lengths;
    const related = correlation === null ? "" : `Correlation ${page.signed(correlation, 2)}. `;
    figures.append(
      figure(
        "Length against reward",
        page.charts.points({ points: lengths.points, x: "distilled tokens of the response", y: "summed reward" }),
        `${related}Blue: chosen, orange: rejected; ${lengths.points.length.toLocaleString("en")} of ${lengths.rows.toLocaleString("en")} responses.`,
      ),
    );
    root.append(figures);
    root.append(
      preferences === null
        ? el("p", {}, "No response here has its partner: build with --responses both for margins.")
        : accuracy_table(),
    );
  });

  if (distributions !== null) {
    page.section("distributions", "Distributions over positions", (root) => {
      const figures = distributions.charts.map(({ title, axis, logarithmic, edges, counts, summary }) => {
        const note = `mean ${page.charts.label(summary.mean)}, median ${page.charts.label(summary.p50)}, 1 % to 99 %: ${page.charts.label(summary.p01)} to ${page.charts.label(summary.p99)}`;
        return figure(title, page.charts.bars({ edges, counts, axis, logarithmic }), note);
      });
      root.append(el("p", { class: "quiet" }, distributions.on), el("div", { class: "figures" }, figures));
    });
  }

  page.section("columns", "Bytes by column", (root) => {
    const heads = [
      ["column", "text"],
      ["share", "number"],
      ["bytes per response token", "number"],
    ];
    const most = columns.entries[0][1];
    const rows = columns.entries.map(([name, share, bytes]) => {
      const bar = el("span", { class: "share-bar" });
      bar.style.setProperty("--share", String(share / most));
      return [el("span", {}, name, bar), `${(100 * share).toFixed(1)} %`, page.number(bytes, 2)];
    });
    root.append(
      el(
        "p",
        {},
        `${(columns.total_bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB of shards, as they are stored (compressed).`,
      ),
    );
    root.append(
      el("details", {}, el("summary", {}, `${columns.entries.length} columns, the largest first`), table(heads, rows)),
    );
  });
})();
