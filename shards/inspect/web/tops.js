/* The most rewarded and the most punished tokens and words of the whole cache. A click filters the list of rows. */
"use strict";

page.section("tops", "Most rewarded and most punished", (root) => {
  const { el, data } = page;
  const { listed, survey } = data.about;
  const on_page = new Map(); // number -> rows of the page that have it
  for (const { listed: numbers } of data.rows)
    for (const number of numbers) on_page.set(number, (on_page.get(number) ?? 0) + 1);

  /* A text with its white space in view: ␣ for a space at an end, ↵ for a line end. */
  const visible = (text) =>
    text
      .replace(/^ +| +$/gu, (spaces) => "␣".repeat(spaces.length))
      .replaceAll("\n", "↵")
      .replaceAll("\t", "⇥");

  function show(number) {
    page.filters.only(number);
    document.getElementById("reader").scrollIntoView();
  }

  function line(number) {
    const [text, , count, total] = listed.entries[number];
    const rows = on_page.get(number) ?? 0;
    const title = rows ? `show the ${rows} rows of this page that have it` : "no row of this page has it";
    const button = el(
      "button",
      {
        type: "button",
        class: "listed",
        disabled: rows === 0,
        title,
        dataset: { number },
        on: { click: () => show(number) },
      },
      el("bdi", {}, visible(text)),
    );
    const cells = [count.toLocaleString("en"), page.signed(total, 2), page.signed(total / count, 4)];
    return el(
      "tr",
      {},
      el("td", {}, button),
      cells.map((cell) => el("td", { class: "number" }, cell)),
    );
  }

  function table(title, numbers, kind) {
    const head = el(
      "tr",
      {},
      el("th", {}, kind),
      ["count", "total", "mean"].map((name) => el("th", { class: "number" }, name)),
    );
    const body = numbers.length ? numbers.map(line) : [el("tr", {}, el("td", { colSpan: 4, class: "quiet" }, "none"))];
    return el(
      "div",
      { class: "tops" },
      el("h3", {}, title),
      el("table", {}, el("thead", {}, head), el("tbody", {}, body)),
    );
  }

  const lists = el("div", { class: "figures lists" });
  const by = el(
    "select",
    { id: "tops-by", on: { change: draw } },
    el("option", { value: "total" }, "total"),
    el("option", { value: "mean" }, "mean"),
  );

  function draw() {
    const made = [];
    for (const [kind, orders] of Object.entries(listed.orders)) {
      const found = orders[by.value];
      if (kind === "word" && data.note !== null) continue;
      made.push(table(`Rewarded ${kind}s`, found.rewarded, kind), table(`Punished ${kind}s`, found.punished, kind));
    }
    lists.replaceChildren(...made);
  }

  const what = `Reward: ${survey.reward}, in nats times beta. Counted on ${survey.on}, ${survey.tokens.toLocaleString("en")} tokens; listed is what occurs ${listed.min_count} times or more. A word's reward is the sum of its tokens'. A click shows the rows of this page that have it.`;
  root.append(
    el("p", { class: "quiet" }, what),
    el("div", { class: "controls" }, el("label", {}, "sorted by", by)),
    lists,
  );
  if (data.note !== null) root.append(el("p", { class: "quiet" }, `No words: the cache has ${data.note}.`));
  draw();
});
