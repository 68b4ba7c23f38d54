"use strict";
// Makes the page handy: methods can be hidden, tables sorted and filtered, values read off drawings.
// Without it everything is there to read.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const number = (text) => {
    const found = text.replaceAll("−", "-").replaceAll(",", "").match(/^\s*[+<>]?\s*(-?\d[\d.]*(?:e[+-]?\d+)?)/i);
    return found ? Number(found[1]) : NaN;
  };

  // Methods -------------------------------------------------------------------------------------------------
  const hiddenMethods = new Set();
  const toolbar = document.getElementById("methods");

  function showMethods() {
    for (const part of all("[data-method]")) part.toggleAttribute("hidden", hiddenMethods.has(part.dataset.method));
    for (const key of all(".legend [data-key]")) key.toggleAttribute("hidden", hiddenMethods.has(key.dataset.key));
    for (const button of all("[data-toggle]", toolbar))
      button.setAttribute("aria-pressed", String(!hiddenMethods.has(button.dataset.toggle)));
    document.getElementById("all-methods").hidden = hiddenMethods.size === 0;
  }

  // What is not in view is not laid out, so that its height is a guess: before a jump it must be known.
  const jump = () => {
    document.documentElement.classList.add("whole");
    document.getElementById(location.hash.slice(1))?.scrollIntoView();
  };
  addEventListener("hashchange", jump);
  if (location.hash) jump();

  if (toolbar) {
    toolbar.hidden = false;
    // Headers of tables stick below it.
    const measure = () => document.documentElement.style.setProperty("--bar", `${toolbar.offsetHeight}px`);
    new ResizeObserver(measure).observe(toolbar);
    toolbar.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const method = button.dataset.toggle;
      if (method === undefined) {
        hiddenMethods.clear();
        toolbar.querySelector("button").focus(); // this one goes
      }
      else if (!hiddenMethods.delete(method)) hiddenMethods.add(method);
      showMethods();
    });
  }

  for (const figure of all("figure"))
    for (const key of all(".legend [data-key]", figure)) {
      const dim = (on) => {
        for (const part of all("svg [data-method]", figure))
          part.classList.toggle("dimmed", on && part.dataset.method !== key.dataset.key);
      };
      key.addEventListener("pointerenter", () => dim(true));
      key.addEventListener("pointerleave", () => dim(false));
    }

  // Tables --------------------------------------------------------------------------------------------------
  // Of a method its name alone, without the marker and the remarks.
  const cellText = (row, column) => {
    const cell = row.cells[column];
    return (cell?.querySelector(".key")?.lastChild ?? cell)?.textContent.trim() ?? "";
  };

  function compareRows(column, descending) {
    return (a, b) => {
      const [left, right] = [cellText(a, column), cellText(b, column)];
      const [x, y] = [number(left), number(right)];
      // What has no number comes last, whichever the direction.
      if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
      const order = Number.isNaN(x) ? left.localeCompare(right) : x - y;
      return descending ? -order : order;
    };
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
        for (const other of headers) other.removeAttribute("aria-sort");
        const state = next === undefined ? "ascending" : next;
        if (state) header.setAttribute("aria-sort", state);
        body.append(...(state ? original.toSorted(compareRows(column, state === "descending")) : original));
      });
    });
  }

  function makeFilterable(table) {
    const label = document.createElement("label");
    label.className = "filter";
    label.textContent = "Rows with";
    const input = document.createElement("input");
    input.type = "search";
    label.append(input);
    table.parentElement.before(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.classList.toggle("filtered", !words.every((word) => text.includes(word)));
      }
    });
  }

  // The keyboard stops only at tables that it can scroll.
  const regions = new ResizeObserver((entries) => {
    for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
  });
  for (const region of all(".scroll")) regions.observe(region);

  for (const table of all("main table")) {
    if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
    makeSortable(table);
    if (table.tBodies[0].rows.length > 12) makeFilterable(table);
  }

  // Values under the pointer --------------------------------------------------------------------------------
  const box = document.getElementById("reading-off");
  const names = Object.fromEntries(all("[data-toggle], .legend [data-key], .name [data-key]").map((key) => [
    key.dataset.toggle ?? key.dataset.key, key.querySelector("[data-key]") ?? key]));
  const shapes = new WeakMap();

  // Of every method the vertices of its line, or the places of its marks.
  function shapesOf(svg) {
    if (!shapes.has(svg)) {
      const found = new Map();
      for (const group of all('[data-part="values"]', svg)) {
        const method = group.dataset.method;
        const path = group.querySelector(":scope > path");
        if (svg.dataset.reading === "lines" && (!path || found.has(method))) continue;
        const points = svg.dataset.reading === "lines"
          ? [...path.getAttribute("d").matchAll(/[ML] (-?[\d.]+) (-?[\d.]+)/g)].map((m) => [+m[1], +m[2]])
          : all("use", group).map((use) => [+use.getAttribute("x"), +use.getAttribute("y")]);
        found.set(method, [...(found.get(method) ?? []), ...points]);
      }
      shapes.set(svg, found);
    }
    return shapes.get(svg);
  }

  function value([first, last, low, high, scale], place) {
    const share = (place - first) / (last - first);
    return scale === "log" ? low * (high / low) ** share : low + share * (high - low);
  }

  // As many digits as the drawing resolves, not more.
  function print(x, [, , low, high, scale]) {
    if (scale === "log") return Number(x.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
    const finest = Math.floor(Math.log10(Math.abs(high - low) / 1000));
    const decimals = Math.max(0, Math.min(12, -finest));
    const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
    const rounded = finest > 0 ? 10 ** finest * Math.round(x / 10 ** finest) : x;
    return rounded.toLocaleString("en", digits).replace("-", "−");
  }

  function lineAt(points, x) {
    if (points.length === 1) return Math.abs(points[0][0] - x) < 0.5 ? points[0][1] : null;
    for (let i = 1; i < points.length; i++) {
      const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
      if (x >= x0 - 0.01 && x <= x1 + 0.01) return x1 === x0 ? y1 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
    }
    return null;
  }

  function mark(svg, elements) {
    for (const old of all("svg .cursor")) old.remove();
    for (const [kind, attributes] of elements) {
      const element = document.createElementNS(svg.namespaceURI, kind);
      element.setAttribute("class", "cursor");
      for (const [name, text] of Object.entries(attributes)) element.setAttribute(name, text);
      svg.append(element);
    }
  }

  function row(method, text) {
    const line = document.createElement("tr");
    const name = document.createElement("td");
    name.append(names[method] ? names[method].cloneNode(true) : "");
    const cell = document.createElement("td");
    cell.textContent = text;
    line.append(name, cell);
    return line;
  }

  function readOff(svg, pointer) {
    const [xScale, yScale] = [JSON.parse(svg.dataset.x), JSON.parse(svg.dataset.y)];
    const shown = [...shapesOf(svg)].filter(([method, points]) => points.length && !hiddenMethods.has(method));
    const spot = new DOMPoint(pointer.clientX, pointer.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const categories = svg.dataset.names ? JSON.parse(svg.dataset.names) : null;
    const at = (x) => (categories ? categories[Math.round(value(xScale, x))] ?? "" : `${svg.dataset.label} ${print(value(xScale, x), xScale)}`);
    let heading;
    let rows;
    if (svg.dataset.reading === "lines") {
      const places = shown.flatMap(([, points]) => points.map(([x]) => x));
      const nearest = places.reduce((best, x) => (Math.abs(x - spot.x) < Math.abs(best - spot.x) ? x : best), Infinity);
      if (!Number.isFinite(nearest) || spot.x < xScale[0] - 5 || spot.x > xScale[1] + 5) return hide();
      rows = shown
        .map(([method, points]) => [method, lineAt(points, nearest)])
        .filter(([, y]) => y !== null)
        .sort((a, b) => a[1] - b[1]);
      heading = at(nearest);
      mark(svg, [["line", { x1: nearest, x2: nearest, y1: yScale[0], y2: yScale[1] }]]);
    } else {
      let best = null;
      for (const [method, points] of shown)
        for (const [x, y] of points) {
          const distance = Math.hypot(x - spot.x, y - spot.y);
          if (distance < 25 && (!best || distance < best.distance)) best = { method, x, y, distance };
        }
      if (!best) return hide();
      heading = at(best.x);
      rows = [[best.method, best.y]];
      mark(svg, [["circle", { cx: best.x, cy: best.y, r: 6 }]]);
    }
    const table = document.createElement("table");
    for (const [method, y] of rows) table.append(row(method, print(value(yScale, y), yScale)));
    const title = document.createElement("p");
    title.textContent = heading;
    box.replaceChildren(title, table);
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const right = pointer.clientX + 18;
    box.style.left = `${Math.max(4, right + width > innerWidth ? pointer.clientX - width - 18 : right)}px`;
    box.style.top = `${Math.max(4, Math.min(pointer.clientY + 12, innerHeight - height - 4))}px`;
  }

  function hide() {
    box.hidden = true;
    mark(null, []);
  }

  for (const svg of all("svg[data-reading]")) {
    svg.addEventListener("pointermove", (event) => readOff(svg, event));
    svg.addEventListener("pointerleave", hide);
  }
})();
