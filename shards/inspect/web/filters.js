/* Search, filters and order of the list of rows.

   page.filters.build()        the controls
   page.filters.only(number)   only rows with this listed token or word (`page.data.about.listed`); null: any */
"use strict";

page.filters = (() => {
  const { el } = page;
  const { all } = page.rows;
  const state = { text: "", told: "all", kind: "all", order: "cache", rising: false, least: null, listed: null };
  const pairs = new Map(); // pair -> its rows in the page
  let rewards = null; // negative and beta of the rewards in the list
  let chip = null;

  for (const row of all) pairs.set(row.pair, [...(pairs.get(row.pair) ?? []), row]);

  /* Reward of the chosen response minus that of the rejected one; null if the page has only one of them. */
  function margin(row) {
    const [chosen, rejected] = [true, false].map((wanted) =>
      pairs.get(row.pair).find((other) => other.chosen === wanted),
    );
    return chosen && rejected ? page.teacher.total(chosen) - page.teacher.total(rejected) : null;
  }

  const ORDERS = {
    cache: ["order of the cache", null],
    margin: ["margin of the pair", margin],
    reward: ["reward", (row) => page.teacher.total(row)],
    distance: ["largest D_t", (row) => row.largest_distance[page.teacher.rewarding()]],
    length: ["length in tokens", (row) => row.positions],
  };
  const TOLD = { all: "all", right: "told right", wrong: "told wrong", alone: "no partner here" };
  const KINDS = { all: "both", chosen: "chosen", rejected: "rejected" };

  function told(row) {
    const value = margin(row);
    return value === null ? "alone" : value > 0 ? "right" : "wrong";
  }

  function wanted(row) {
    if (state.kind !== "all" && row.chosen !== (state.kind === "chosen")) return false;
    if (state.listed !== null && !row.listed.includes(state.listed)) return false;
    if (state.text !== "" && !row.text.toLowerCase().includes(state.text)) return false;
    if (state.told !== "all" && told(row) !== state.told) return false;
    const value = ORDERS[state.order][1];
    return state.least === null || value === null || (value(row) !== null && value(row) >= state.least);
  }

  function apply() {
    const found = all.filter(wanted);
    const value = ORDERS[state.order][1];
    if (value !== null) {
      const sign = state.rising ? 1 : -1;
      const keys = new Map(found.map((row) => [row, value(row)]));
      const last = (row) => (keys.get(row) === null ? 1 : 0); // rows without a margin come last
      found.sort((a, b) => last(a) - last(b) || sign * (keys.get(a) - keys.get(b)) || a.id - b.id);
    }
    page.rows.show(found.map((row) => row.id));
  }

  function set(changes) {
    Object.assign(state, changes);
    apply();
  }

  function only(number) {
    set({ listed: number });
    const entry = number === null ? null : page.data.about.listed.entries[number];
    chip.hidden = entry === null;
    chip.replaceChildren(
      ...(entry ? ["with ", el("code", {}, entry[0].trim() || JSON.stringify(entry[0])), " ×"] : []),
    );
  }

  function select(name, text, options) {
    const box = el("select", { id: `filter-${name}`, on: { change: () => set({ [name]: box.value }) } });
    for (const [value, shown] of Object.entries(options)) box.append(el("option", { value }, shown));
    return el("label", {}, text, box);
  }

  function build() {
    const search = el("input", {
      type: "search",
      id: "filter-text",
      placeholder: "find in responses",
      "aria-label": "find in responses",
      on: { input: () => set({ text: search.value.toLowerCase() }) },
    });
    const order = select(
      "order",
      "sorted by",
      Object.fromEntries(Object.entries(ORDERS).map(([name, [text]]) => [name, text])),
    );
    const least = el("input", {
      type: "number",
      step: "any",
      id: "filter-least",
      on: { input: () => set({ least: least.value === "" ? null : Number(least.value) }) },
    });
    const rising = el("input", {
      type: "checkbox",
      id: "filter-rising",
      on: { change: () => set({ rising: rising.checked }) },
    });
    chip = el("button", {
      type: "button",
      id: "filter-listed",
      class: "only",
      hidden: true,
      title: "show rows without it too",
      on: { click: () => only(null) },
    });
    page.on("teacher", () => {
      const now = `${page.teacher.rewarding()} ${page.teacher.state.spec.beta}`;
      if (rewards !== null && rewards !== now) apply();
      rewards = now;
    });
    rewards = `${page.teacher.rewarding()} ${page.teacher.state.spec.beta}`;
    return el(
      "div",
      { id: "filters", role: "search" },
      search,
      el(
        "div",
        { class: "controls" },
        select("told", "preference", TOLD),
        select("kind", "responses", KINDS),
        order,
        el("label", {}, "at least", least),
      ),
      el("label", { class: "check" }, rising, " smallest first"),
      chip,
    );
  }

  return { build, only, margin, state };
})();
