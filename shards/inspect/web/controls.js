/* The controls of the teacher in view, within the range that the cache's nodes serve, and the legend of colours. */
"use strict";

page.controls = (() => {
  const { el, number } = page;
  const { nodes, pairs, roles } = page.data;
  const redraws = [];

  const labelled = (text, ...parts) => el("label", {}, text, ...parts);

  /* A select. options: [value, text, why it is disabled or null]. */
  function select(name, text, options, read, write) {
    const box = el("select", { id: `control-${name}`, on: { change: () => write(box.value) } });
    for (const [value, shown, why] of options)
      box.append(el("option", { value, disabled: why !== null, title: why ?? "" }, shown));
    redraws.push(() => (box.value = read()));
    return labelled(text, box);
  }

  /* A slider with a field for the exact number. to, from: between the slider's place and the number. */
  function slider(name, text, range, read, write, { to = Number, from = Number } = {}) {
    const bar = el("input", {
      type: "range",
      ...range,
      "aria-label": text,
      id: `slider-${name}`,
      on: { input: () => write(to(Number(bar.value))) },
    });
    const field = el("input", {
      type: "number",
      step: "any",
      id: `field-${name}`,
      on: { change: () => write(Number(field.value)) },
    });
    const made = el("div", { class: "slider" }, labelled(text, el("span", { class: "slider-parts" }, bar, field)));
    redraws.push(() => {
      const value = read();
      bar.value = from(value);
      if (document.activeElement !== field || Number(field.value) !== value) field.value = Number(value.toPrecision(6));
    });
    return made;
  }

  const spec = () => page.teacher.state.spec;
  const set = (changes) => page.teacher.set(changes);
  const roles_of = (place) => [...new Set(pairs.map((pair) => pair.split("/")[place]))];

  function choose_preset(name) {
    const { anchor, negative, strength } = page.data.presets[name];
    set({ anchor, negative, strength });
  }

  function why_not(preset) {
    const pair = `${preset.anchor}/${preset.negative}`;
    if (!roles.includes(preset.negative)) return `the cache was built without the model ${preset.negative}`;
    return pairs.includes(pair) ? null : `the cache was built without --pairs ${pair}`;
  }

  function selects() {
    const legal = (place, word) =>
      ["dpo", "reference", "reverse"]
        .filter((role) => (place ? role !== "dpo" : role !== "reverse"))
        .map((role) => [role, role, roles_of(place).includes(role) ? null : `no pair with this ${word} is stored`]);
    const named = Object.entries(page.data.presets).map(([name, preset]) => [name, name, why_not(preset)]);
    const strengths = ["adaptive", "constant", "learned"].map((name) => [name, name, null]);
    return [
      select(
        "preset",
        "teacher",
        [...named, ["own", "another", ""]],
        () => page.teacher.preset() ?? "own",
        choose_preset,
      ),
      select(
        "anchor",
        "anchor",
        legal(0, "anchor"),
        () => spec().anchor,
        (anchor) => set({ anchor }),
      ),
      select(
        "negative",
        "negative",
        legal(1, "negative"),
        () => spec().negative,
        (negative) => set({ negative }),
      ),
      select(
        "strength",
        "strength",
        strengths,
        () => spec().strength,
        (strength) =>
          set({ strength, learned_offset: spec().learned_offset ?? 0, learned_slope: spec().learned_slope ?? 1 }),
      ),
    ];
  }

  /* The sliders of every strength; only those that the chosen one uses are shown. */
  function sliders() {
    const highest = nodes.strengths.at(-1);
    const of_w = { to: (w) => spec().beta / w, from: (kl_coef) => spec().beta / kl_coef };
    const made = {
      gain: slider(
        "gain",
        "gain",
        { min: 0, max: nodes.gains.at(-1), step: 0.1 },
        () => spec().gain,
        (gain) => set({ gain }),
      ),
      kl_coef: slider(
        "kl_coef",
        "kl_coef (slider: w = beta / kl_coef)",
        { min: 0.05, max: highest, step: 0.05 },
        () => spec().kl_coef,
        (kl_coef) => set({ kl_coef }),
        of_w,
      ),
      offset: slider(
        "offset",
        "offset",
        { min: -8, max: 8, step: 0.05 },
        () => spec().learned_offset ?? 0,
        (learned_offset) => set({ learned_offset }),
      ),
      slope: slider(
        "slope",
        "slope",
        { min: -10, max: 30, step: 0.1 },
        () => spec().learned_slope ?? 0,
        (learned_slope) => set({ learned_slope }),
      ),
      beta: slider(
        "beta",
        "beta",
        { min: 0.01, max: 1, step: 0.01 },
        () => spec().beta,
        (beta) => set({ beta }),
      ),
    };
    const used = { adaptive: ["gain"], constant: ["kl_coef"], learned: ["offset", "slope"] };
    redraws.push(() => {
      for (const [name, part] of Object.entries(made))
        part.hidden = name !== "beta" && !used[spec().strength].includes(name);
    });
    return Object.values(made);
  }

  function legend() {
    const box = el("p", { class: "legend" });
    redraws.push(() => {
      const negative = page.teacher.rewarding();
      const deepest = spec().beta * page.data.scale.reward[negative];
      box.replaceChildren(
        el("span", { class: "number" }, `−${number(deepest, 3)}`),
        el("span", { class: "ramp" }),
        el("span", { class: "number" }, `+${number(deepest, 3)}`),
        el("span", {}, ` reward of a token, beta (l_dpo − l_${negative}): blue is rewarded, orange is punished`),
      );
    });
    return box;
  }

  function build() {
    const lines = [
      ["D_t", "D_t", null],
      ["w_t", "w_t", null],
      ["none", "nothing", null],
    ];
    const underline = select(
      "line",
      "underline",
      lines,
      () => page.text.state.line,
      (line) => {
        page.text.state.line = line;
        page.tell("teacher");
      },
    );
    const words = el("span", { id: "teacher-text", "aria-live": "polite" });
    redraws.push(() => {
      const { fault } = page.teacher.state;
      words.textContent = fault === null ? `Teacher: ${page.teacher.text()}` : `No such teacher: ${fault}.`;
      words.classList.toggle("fault", fault !== null);
    });
    const reset = el("button", { type: "button", on: { click: () => set(page.data.teacher) } }, "Reset");
    const controls = el("div", { class: "controls" }, selects(), sliders(), underline, reset);
    const open = matchMedia("(min-width: 56rem)").matches;
    const made = el("div", { class: "teacher" }, el("details", { open }, el("summary", {}, words), controls), legend());
    const redraw = () => redraws.forEach((one) => one());
    page.on("teacher", redraw);
    redraw();
    return made;
  }

  return { build };
})();
