/* The open pair: the chosen response next to the rejected one, each with its reward and its running sum as a line. */
"use strict";

page.pair = (() => {
  const { el, svg } = page;
  const HEIGHT = 64;
  const WIDTH = 600;
  const EDGE = 2; // above and below, so that the line is not cut
  const NOWHERE = -9;
  let open = []; // [{loaded, card, response, sum}]

  /* Sums of the rewards up to each position, from 0. */
  function running(loaded) {
    const sums = [0];
    for (let n = 0; n < loaded.row.positions; n++) sums.push(sums[n] + page.teacher.reward(loaded.scores, n));
    return sums;
  }

  /* The running sum of a response as a line. shared: the scales of all open responses. */
  function line(sums, shared) {
    const x = (n) => ((WIDTH * n) / shared.longest).toFixed(1);
    const height = HEIGHT - 2 * EDGE;
    const y = (sum) => (EDGE + height * (1 - (sum - shared.lowest) / (shared.highest - shared.lowest || 1))).toFixed(1);
    const points = sums.map((sum, n) => `${x(n)},${y(sum)}`).join(" ");
    const chart = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      class: "running",
      "aria-hidden": "true",
    });
    chart.append(
      svg("line", { x1: 0, x2: WIDTH, y1: y(0), y2: y(0), class: "zero" }),
      svg("polyline", { points, class: sums.at(-1) < 0 ? "curve down" : "curve" }),
      svg("line", { x1: NOWHERE, x2: NOWHERE, y1: 0, y2: HEIGHT, class: "marker" }),
    );
    return chart;
  }

  function shared_scales(all_sums) {
    const flat = all_sums.flat();
    return {
      longest: Math.max(...all_sums.map((sums) => sums.length - 1), 1),
      lowest: Math.min(...flat),
      highest: Math.max(...flat),
    };
  }

  function draw() {
    const all_sums = open.map(({ loaded }) => running(loaded));
    const shared = shared_scales(all_sums);
    open.forEach((part, i) => {
      const { row } = part.loaded;
      page.text.colour(part.response, part.loaded);
      part.sum.replaceChildren(
        el(
          "div",
          { class: "sum-text" },
          el("span", { class: "quiet" }, "running sum of the reward"),
          el("b", { class: "number" }, page.signed(page.teacher.total(row))),
        ),
        line(all_sums[i], shared),
        el(
          "div",
          { class: "sum-text quiet" },
          el("span", {}, `${page.signed(shared.lowest, 2)} to ${page.signed(shared.highest, 2)}`),
          el("span", {}, `token ${shared.longest}`),
        ),
      );
    });
    const verdict = document.getElementById("margin");
    if (verdict) verdict.replaceChildren(...margin());
  }

  /* Whether dpo and the negative tell the pair right. */
  function margin() {
    if (open.length !== 2 || open[0].loaded.row.chosen === open[1].loaded.row.chosen)
      return ["One response; its partner is not in this page."];
    const difference = page.teacher.total(open[0].loaded.row) - page.teacher.total(open[1].loaded.row);
    return [
      `Margin chosen − rejected: `,
      el("b", {}, page.signed(difference)),
      difference > 0 ? ", told right" : ", told wrong",
    ];
  }

  function card(loaded) {
    const { row } = loaded;
    const response = page.text.response(loaded);
    const sum = el("div", { class: "sum" });
    const copy = el(
      "button",
      { type: "button", class: "no-print", on: { click: () => page.copy(row.text) } },
      "Copy text",
    );
    const table = el(
      "button",
      { type: "button", class: "no-print", on: { click: () => page.copy(as_table(loaded)) } },
      "Copy table",
    );
    const facts = `row ${row.id}, ${row.positions} tokens`;
    const head = el(
      "div",
      { class: "card-head" },
      el("h3", {}, row.chosen ? "Chosen" : "Rejected"),
      el("span", { class: "quiet" }, facts),
      el("span", { class: "buttons" }, copy, table),
    );
    return { loaded, response, sum, card: el("article", { class: "card" }, head, sum, response) };
  }

  /* The tokens of a response as tab-separated text. */
  function as_table(loaded) {
    const { scores } = loaded;
    const teacher = page.teacher.of(scores);
    const roles = page.data.roles;
    const lines = [
      ["token", "text", "reward", "D_t", "w_t", "lambda_t", ...roles.map((r) => `p_${r}`), "p_teacher"].join("\t"),
    ];
    loaded.tokens.forEach(({ n, text }, i) => {
      if (n === null) return;
      const own = roles.map((role) => Math.exp(scores.next_logprob[role][n]));
      const taught = teacher ? [teacher.strength[n], teacher.weight[n]] : ["", ""];
      const distance = scores.l1_distance[page.teacher.rewarding()][n];
      lines.push(
        [
          i,
          JSON.stringify(text),
          page.teacher.reward(scores, n),
          distance,
          ...taught,
          ...own,
          teacher ? Math.exp(teacher.next_logprob[n]) : "",
        ].join("\t"),
      );
    });
    return lines.join("\n");
  }

  /* Shows a row and its partner in `root`. */
  async function show(root, id) {
    const loaded = await Promise.all(page.rows.partners(id).map((row) => page.rows.load(row.id)));
    if (page.rows.state.id !== id) return; // another one was opened meanwhile
    open = loaded.map(card);
    const same = loaded.every(({ row }) => row.prompt === loaded[0].row.prompt);
    const prompts = (same ? loaded.slice(0, 1) : loaded).map(page.text.prompt);
    root.replaceChildren(
      ...prompts,
      el("p", { id: "margin" }),
      el(
        "div",
        { class: "cards" },
        open.map((part) => part.card),
      ),
    );
    draw();
  }

  /* The open part of a row, and the place of one of its positions in its chart. */
  const part_of = (id) => open.find(({ loaded }) => loaded.row.id === id);

  function mark(id, n) {
    for (const { loaded, sum } of open) {
      const marker = sum.querySelector(".marker");
      const longest = Math.max(...open.map((part) => part.loaded.row.positions), 1);
      const at = loaded.row.id === id && n !== null ? ((n + 1) / longest) * WIDTH : NOWHERE;
      marker.setAttribute("x1", at);
      marker.setAttribute("x2", at);
    }
  }

  return { show, draw, part_of, mark };
})();
