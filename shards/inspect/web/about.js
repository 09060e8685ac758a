/* What the cache is: identity and options, the verdict on every teacher that it serves, skipped and cut rows. */
"use strict";

(() => {
  const { el, data } = page;
  const { identity, tables, skipped, cut, prompt_not_prefix, rows, verdict, teachers } = data.about;

  function judged({ name, spec, headline, reasons, level, measured, shares }) {
    const facts = shares.map(([share, what]) => el("li", {}, `${share} of the positions: ${what}`));
    return el(
      "article",
      { class: `verdict level${level}` },
      el("p", {}, el("b", {}, name), ": ", el("span", { class: "headline" }, headline)),
      reasons.length
        ? el(
            "ul",
            {},
            reasons.map((reason) => el("li", {}, reason)),
          )
        : null,
      el("details", {}, el("summary", { class: "quiet" }, measured ?? spec), el("ul", { class: "quiet" }, facts)),
    );
  }

  page.section("teachers", "Teachers of this cache", (root) => {
    if (verdict) root.append(judged(verdict));
    else root.append(el("p", {}, "The cache serves none of the named teachers with its defaults."));
    root.append(
      ...teachers.map((one) => {
        if (one.lacking === undefined) return judged(one);
        return el(
          "article",
          { class: "verdict level3" },
          el("p", {}, el("b", {}, one.name), ": not served"),
          el("p", { class: "quiet" }, one.lacking),
        );
      }),
    );
  });

  page.section("about", "What is in the cache", (root) => {
    const count = (number) => number.toLocaleString("en");
    const left_out = Object.entries(skipped).map(([reason, number]) => `${count(number)} skipped as ${reason}`);
    const lines = [
      `${count(rows)} responses`,
      `${count(cut)} cut at max_length`,
      ...left_out,
      `${count(prompt_not_prefix)} whose prompt alone tokenises otherwise`,
    ];
    const facts = [
      ...Object.entries(identity).filter(([name, texts]) => name !== "rows" && texts.length),
      ["rows", lines],
    ];
    root.append(
      el(
        "dl",
        { class: "identity" },
        facts.flatMap(([name, texts]) => [
          el("dt", {}, name),
          el(
            "dd",
            {},
            texts.map((text) => el("div", {}, text)),
          ),
        ]),
      ),
    );
    root.append(...tables.map((text) => el("pre", {}, text)));
  });
})();
