/* The heart of the page: a list of rows, the open pair, and the panel of the token in view.

   A token is in view while it is pointed at, and stays so after a click, Enter or a link, until Escape. */
"use strict";

(() => {
  const { el } = page;
  const SNIPPET = 90;
  const parts = {};
  let items = new Map(); // id -> {button, reward}
  let pinned = false;

  /* The list of rows that are shown. */
  function list() {
    items = new Map();
    const made = page.rows.state.shown.map((id) => {
      const row = page.rows.by_id.get(id);
      const reward = el("span", { class: "number" });
      const text = row.text.slice(0, SNIPPET).replace(/\s+/gu, " ");
      const kind = el("span", { class: row.chosen ? "kind" : "kind rejected" }, row.chosen ? "chosen" : "rejected");
      const button = el(
        "button",
        { type: "button", class: "row", on: { click: () => page.rows.open(id) } },
        el("span", { class: "quiet" }, id),
        kind,
        reward,
        el("bdi", { class: "snippet" }, text),
      );
      items.set(id, { button, reward });
      return el("li", {}, button);
    });
    parts.list.replaceChildren(...made);
    const { length } = page.rows.all;
    const all = page.data.total === length ? "" : ` of ${page.data.total.toLocaleString("en")} in the cache`;
    parts.count.textContent =
      made.length === length ? `${length} responses${all}` : `${made.length} of ${length} responses${all}`;
    rewards();
    current();
  }

  function rewards() {
    for (const [id, { reward }] of items)
      reward.textContent = page.signed(page.teacher.total(page.rows.by_id.get(id)), 2);
  }

  function current() {
    const open = page.rows.state.id === null ? [] : page.rows.partners(page.rows.state.id).map((row) => row.id);
    for (const [id, { button }] of items) {
      if (open.includes(id)) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  const token_of = (event) => event.target.closest?.(".token") ?? null;
  const place_of = (span) => [Number(span.closest(".response").dataset.row), Number(span.dataset.token)];

  /* Shows the panel of a token, without moving the address. */
  async function view(id, token) {
    parts.asked = { id, token };
    const { asked } = parts;
    const loaded = await page.rows.load(id);
    if (asked !== parts.asked) return; // another one was asked for meanwhile
    const step = (by) => move(span_at(id, token), by);
    const redraw = () => view(id, token);
    parts.panel.replaceChildren(...page.panel.build(loaded, token, { step, redraw, close }));
    parts.panel.hidden = false;
    parts.pair.style.setProperty("--panel", `${parts.panel.offsetHeight}px`);
    for (const marked of parts.pair.querySelectorAll(".token.view")) marked.classList.remove("view");
    span_at(id, token)?.classList.add("view");
    page.pair.mark(id, loaded.tokens[token]?.n ?? null);
    parts.viewed = [id, token];
  }

  const span_at = (id, token) => page.pair.part_of(id)?.response.querySelector(`[data-token="${token}"]`) ?? null;

  function close() {
    pinned = false;
    parts.viewed = parts.asked = null;
    parts.panel.hidden = true;
    for (const marked of parts.pair.querySelectorAll(".token.view")) marked.classList.remove("view");
    page.pair.mark(null, null);
    if (page.rows.state.id !== null) page.rows.open(page.rows.state.id);
  }

  function pin(span) {
    pinned = true;
    page.rows.open(...place_of(span));
  }

  /* Moves to another token of the same response: by tokens, or with "up" and "down" to the line above or below. */
  function move(span, by) {
    if (span === null) return;
    const spans = [...span.closest(".response").querySelectorAll(".token")];
    const here = spans.indexOf(span);
    let next = spans[here + by] ?? span;
    if (by === "up" || by === "down") {
      const { top, left } = span.getBoundingClientRect();
      const boxes = spans.map((other) => [other, other.getBoundingClientRect()]);
      const beyond = boxes.filter(([, box]) => (by === "up" ? box.top < top - 2 : box.top > top + 2));
      const edge =
        by === "up" ? Math.max(...beyond.map(([, box]) => box.top)) : Math.min(...beyond.map(([, box]) => box.top));
      const row = beyond.filter(([, box]) => Math.abs(box.top - edge) <= 2);
      next = row.sort(([, a], [, b]) => Math.abs(a.left - left) - Math.abs(b.left - left))[0]?.[0] ?? span;
    }
    next.focus({ preventScroll: false });
    if (pinned) pin(next);
    else view(...place_of(next));
  }

  function key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down" };
    const response = event.target.closest?.(".response");
    if (event.key === "Escape" && !parts.panel.hidden) close();
    else if (!response) return;
    else if (event.key === "Enter" || event.key === " ") pin(token_of(event) ?? response.querySelector(".token"));
    else if (event.key in steps) {
      const span = token_of(event);
      if (span) move(span, steps[event.key]);
      else move(response.querySelector(".token"), 0);
    } else return;
    event.preventDefault();
  }

  async function open(id) {
    current();
    parts.panel.hidden = true;
    await page.pair.show(parts.pair, id);
    const { state } = page.rows;
    if (state.id === id && state.token !== null) await select(state);
  }

  /* A token was selected, or none. */
  async function select({ id, token }) {
    if (token === null || !page.pair.part_of(id)) return;
    pinned = true;
    await view(id, token);
    const span = span_at(id, token);
    if (span && document.activeElement !== span) span.focus({ preventScroll: true });
    if (span) span.scrollIntoView({ block: "nearest" });
  }

  page.section("reader", null, (root) => {
    parts.list = el("ol", { class: "rows" });
    parts.count = el("p", { class: "quiet" });
    parts.pair = el("div", { id: "pair" });
    parts.panel = el("aside", { id: "panel", hidden: true, "aria-label": "the token in view" });
    const side = el(
      "nav",
      { class: "side no-print", "aria-label": "responses" },
      el("div", { id: "filters" }),
      parts.count,
      parts.list,
    );
    const missing = page.data.roles.includes("reverse")
      ? null
      : el(
          "p",
          { class: "notice" },
          "The cache has no model reverse: rewards are beta (l_dpo − l_reference), and no teacher can move away from reverse.",
        );
    const note = page.data.note === null ? null : el("p", { class: "notice" }, `The cache has ${page.data.note}.`);
    const help = el(
      "p",
      { class: "quiet no-print" },
      "Point at a token, or tab to the text and use the arrow keys; a click or Enter keeps it, Escape lets it go.",
    );
    root.append(
      missing ?? "",
      note ?? "",
      page.controls.build(),
      help,
      el("div", { class: "reader" }, side, el("div", { class: "open" }, parts.pair, parts.panel)),
    );
    parts.pair.addEventListener("pointerover", (event) => {
      const span = token_of(event);
      if (span && !pinned && event.pointerType === "mouse") view(...place_of(span));
    });
    parts.pair.addEventListener("click", (event) => {
      const span = token_of(event);
      if (span) pin(span);
    });
    document.addEventListener("keydown", key);
    page.on("list", list);
    page.on("open", open);
    page.on("select", select);
    page.on("teacher", () => {
      rewards();
      page.pair.draw();
      if (parts.viewed) view(...parts.viewed);
    });
    addEventListener("hashchange", page.rows.follow);
    list();
    const { hash } = location;
    if (page.rows.follow()) return;
    if (hash.startsWith("#row-"))
      help.textContent = `This page does not have ${hash.slice(1)}; --rows chooses what it has.`;
    if (page.rows.all.length) page.rows.open(page.rows.all[0].id);
  });
})();
