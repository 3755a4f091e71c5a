"use strict";

(() => {
  /* Sorting: by number where the cell has one, else by text; a missing value goes last. */
  function sortKey(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) {
      const number = Number(cell.dataset.value);
      return Number.isNaN(number) ? null : number;
    }
    return cell.textContent.trim() || null;
  }

  function compare(first, second) {
    if (first === null || second === null) {
      return (first === null) - (second === null);
    }
    if (typeof first === "number" && typeof second === "number") {
      return first - second;
    }
    return String(first).localeCompare(String(second), "en", { numeric: true });
  }

  function sortBy(table, header) {
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) {
      other.removeAttribute("aria-sort");
    }
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => ({ row, key: sortKey(row, header.cellIndex) }));
    keyed.sort((first, second) => {
      const missing = first.key === null || second.key === null;
      const order = compare(first.key, second.key);
      return descending && !missing ? -order : order;
    });
    body.append(...keyed.map(({ row }) => row));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const header of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.addEventListener("click", () => sortBy(table, header));
      header.replaceChildren(button);
    }
  }

  /* Drawing waits until the page can be read and used: plotly takes its time to start. */
  const narrow = 560;
  const config = {
    displaylogo: false,
    responsive: true,
    /* Said in full, because plotly's own choice has a button that sends the data away. */
    modeBarButtons: [["toImage"], ["zoom2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };
  const drawings = [];

  /* Colours that depend on light or dark come from the style sheet, so they are said once. */
  function themed(place, spec) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const family = getComputedStyle(document.body).fontFamily;
    const layout = structuredClone(spec.layout);
    layout.font = { color: color("ink"), size: 13, family };
    layout.hoverlabel = { bgcolor: color("panel"), bordercolor: color("soft"), font: layout.font };
    layout.modebar = { color: color("soft"), activecolor: color("ink"), bgcolor: "transparent" };
    for (const [key, axis] of Object.entries(layout)) {
      if (/^[xy]axis\d*$/.test(key)) {
        axis.gridcolor = color("rule");
        axis.zerolinecolor = color("rule");
        axis.linecolor = color("soft");
      }
    }
    if (place.clientWidth < narrow && layout.showlegend !== false) {
      /* The legend stacks up on a phone; the drawing keeps its height. */
      layout.height += 20 * Math.max(0, spec.data.length - 2);
    }
    return layout;
  }

  function draw({ place, spec }) {
    Plotly.react(place, spec.data, themed(place, spec), config);
  }

  function drawAgain() {
    drawings.filter(({ seen }) => seen).forEach(draw);
  }

  function show(drawing) {
    if (!drawing.seen) {
      drawing.seen = true;
      draw(drawing);
    }
  }

  function start() {
    const source = document.getElementById("plotly");
    if (source === null) {
      return;
    }
    const script = document.createElement("script");
    script.textContent = source.textContent;
    document.head.append(script);
    /* Each is drawn shortly before it can be seen: a page with many opens as fast as with one. */
    const near = new IntersectionObserver(
      (entries) => {
        for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
          near.unobserve(target);
          show(drawings.find(({ place }) => place === target));
        }
      },
      { rootMargin: "300px" },
    );
    for (const place of document.querySelectorAll(".plot")) {
      const data = document.getElementById(place.id.replace("plot-", "data-"));
      const drawing = { place, spec: JSON.parse(data.textContent), seen: false };
      place.style.minHeight = `${themed(place, drawing.spec).height}px`;
      drawings.push(drawing);
      near.observe(place);
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);
    matchMedia(`(max-width: ${narrow}px)`).addEventListener("change", drawAgain);
    addEventListener("beforeprint", () => drawings.forEach(show));
    matchMedia("print").addEventListener("change", () => {
      drawings.forEach(show);
      drawAgain();
      drawings.forEach(({ place }) => Plotly.Plots.resize(place));
    });
  }

  addEventListener("load", () => setTimeout(start));
})();
