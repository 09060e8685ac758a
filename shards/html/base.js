/* The base of every page: its data, elements, numbers, and the sections that other scripts register. */
"use strict";

const page = (() => {
  const sections = [];
  const events = new EventTarget();

  /* A new element. properties: of the element; `class`, `dataset` and `on` (event -> listener) have their own words.
     children: elements, or text, which is never read as HTML. */
  function el(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null || value === false) continue;
      if (name === "on") for (const [event, listen] of Object.entries(value)) made.addEventListener(event, listen);
      else if (name === "dataset") Object.assign(made.dataset, value);
      else if (name === "class") made.className = value;
      else if (name in made && name !== "role") made[name] = value;
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  }

  /* A new SVG element with attributes. */
  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.flat());
    return made;
  }

  /* The bytes of an embedded blob, inflated. Null if there is none of that name. */
  async function blob(name) {
    const holder = document.getElementById(name);
    if (holder === null) return null;
    const text = atob(holder.textContent);
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  /* A number with so many digits after the point, a true minus sign, and no minus before zero. */
  function number(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const text = Math.abs(value).toFixed(digits);
    return value < 0 && Number(text) !== 0 ? `−${text}` : text;
  }

  /* The same with a sign in any case. */
  function signed(value, digits = 3) {
    const text = number(value, digits);
    return Number(value) > 0 && Number(text) !== 0 ? `+${text}` : text;
  }

  /* A probability as a percentage with two digits after the point; smaller ones by their order of magnitude. */
  function percent(probability) {
    if (probability === null || Number.isNaN(probability)) return "–";
    const share = 100 * probability;
    if (share === 0) return "0 %";
    if (share >= 0.005) return `${share.toFixed(2)} %`;
    return share < 1e-99 ? "< 1e-99 %" : `${share.toExponential(0)} %`;
  }

  /* Calls `listen` whenever some part of the page tells that `event` has happened. */
  function on(event, listen) {
    events.addEventListener(event, ({ detail }) => listen(detail));
  }

  function tell(event, detail = null) {
    events.dispatchEvent(new CustomEvent(event, { detail }));
  }

  /* Copies text to the clipboard, also where a page of the file system may not use it directly. */
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const holder = el("textarea", { value: text });
      document.body.append(holder);
      holder.select();
      document.execCommand("copy");
      holder.remove();
    }
  }

  /* Registers a part of the page. build: gets its element, and may be async. title: null for none. */
  function section(id, title, build) {
    sections.push({ id, title, build });
  }

  /* Builds all sections, in the order in which they were registered. */
  async function start() {
    for (const { id, title, build } of sections) {
      const root = el("section", { id }, title === null ? null : el("h2", {}, title));
      document.querySelector("main").append(root);
      await build(root);
    }
    document.documentElement.dataset.ready = "true";
  }

  const data = JSON.parse(document.getElementById("data").textContent);
  return { data, el, svg, blob, number, signed, percent, on, tell, copy, section, start };
})();
