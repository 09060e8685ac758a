/* What the cache is: the verdict on the teacher that the command was given, and the tables of the terminal. */
"use strict";

page.section("about", "What is in the cache", (root) => {
  const { el } = page;
  const { verdict, facts } = page.data.about;
  if (verdict) {
    root.append(
      el("p", { class: "verdict" }, el("b", {}, verdict.headline)),
      el(
        "ul",
        {},
        verdict.reasons.map((reason) => el("li", {}, reason)),
      ),
      el("p", { class: "quiet" }, verdict.measured),
    );
  }
  root.append(...facts.map((text) => el("pre", {}, text)));
});
