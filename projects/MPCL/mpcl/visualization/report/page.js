"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const element = (name, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...children);
    return made;
  };
  const swatch = (color) => {
    const made = element("span", { className: "swatch" });
    made.style.background = color;
    return made;
  };
  const rgb = ([red, green, blue]) => `rgb(${red},${green},${blue})`;
  // Plotly reads some HTML in every text: names of others must not become links or tags.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const narrow = () => window.innerWidth < 640;

  const classColors = {};
  if (DATA.samples) DATA.samples.classes.forEach((name, i) => (classColors[name] = rgb(DATA.samples.colors[i])));
  const classes = [...new Set([
    ...(DATA.samples ? DATA.samples.classes : []),
    ...DATA.scores.flatMap((set) => set.classes),
    ...DATA.confusions.flatMap((one) => one.classes),
  ])];
  const shownClasses = new Set(classes);
  const shownRuns = new Set(DATA.runs.map((_, i) => i));

  // ---- filters

  function chip(box, set, key, label, color) {
    const input = element("input", { type: "checkbox", checked: set.has(key) });
    input.addEventListener("change", () => {
      input.checked ? set.add(key) : set.delete(key);
      drawFiltered();
    });
    const made = element("label", { className: "chip" }, input);
    if (color) made.append(swatch(color));
    made.append(label);
    box.append(made);
    return input;
  }

  DATA.runs.forEach((run, i) => chip(byId("run-filter"), shownRuns, i, run.name, run.color));
  const classBoxes = classes.map((name) => chip(byId("class-filter"), shownClasses, name, name, classColors[name]));
  function setClasses(on) {
    classes.forEach((name, i) => {
      classBoxes[i].checked = on;
      on ? shownClasses.add(name) : shownClasses.delete(name);
    });
    drawFiltered();
  }
  byId("all-classes").addEventListener("click", () => setClasses(true));
  byId("no-classes").addEventListener("click", () => setClasses(false));
  if (narrow()) for (const part of document.querySelectorAll("#filter, .fold")) part.open = false;

  function describeFilter() {
    for (const place of document.querySelectorAll(".run-legend"))
      place.replaceChildren(...[...shownRuns].sort((a, b) => a - b).map((run) =>
        element("li", {}, swatch(DATA.runs[run].color), DATA.runs[run].name)));
    byId("filter-state").textContent =
      `(${shownRuns.size} of ${DATA.runs.length} runs, ${shownClasses.size} of ${classes.length} classes)`;
  }

  // ---- charts

  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const font = { family: "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size: 12, color: "#1c1f23" };
  const axis = { exponentformat: "power", gridcolor: "#e4e7eb", zerolinecolor: "#c5cad0", automargin: true };
  // To the left alone: a lowest tick at the border would ask for more room below, which moves the tick.
  const yAxis = { ...axis, automargin: "left" };
  const layoutOf = (extra) => ({
    font, showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 12, t: 8, b: 36 }, hovermode: "closest", hoverlabel: { namelength: -1 },
    dragmode: narrow() ? false : "zoom", ...extra,
  });

  function drawCurves() {
    for (const place of document.querySelectorAll("[data-chart]")) {
      const chart = DATA.charts.find((one) => one.id === place.dataset.chart);
      const traces = chart.traces.filter((trace) => shownRuns.has(trace.run)).map((trace) => ({
        type: "scatter", mode: trace.x.length < 40 ? "lines+markers" : "lines",
        x: trace.x, y: trace.y, name: plain(trace.name), marker: { size: trace.symbol === "circle" ? 5 : 8, symbol: trace.symbol },
        line: { color: DATA.runs[trace.run].color, dash: trace.dash, width: 2 },
        hovertemplate: "%{y:.5g} at %{x}",
      }));
      const layout = layoutOf({
        height: 230,
        xaxis: { ...axis, title: { text: "iteration", standoff: 6 }, rangemode: "tozero" },
        yaxis: { ...yAxis, title: { text: plain(chart.unit) }, rangemode: "normal" },
      });
      Plotly.react(place, traces, layout, config);
    }
  }

  const scoreSet = byId("score-set"), scoreNetwork = byId("score-network");
  DATA.scores.forEach((set, i) => scoreSet.append(element("option", { value: i, textContent: set.dataset })));

  function drawScores() {
    const set = DATA.scores[scoreSet.value];
    if (!set) return;
    const kept = set.classes.map((name, i) => [name, i]).filter(([name]) => shownClasses.has(name)).reverse();
    const wanted = scoreNetwork.value;
    const series = [...shownRuns].sort((a, b) => b - a).map((run) => {
      const own = set.series.filter((one) => one.run === run);
      return own.find((one) => one.network === wanted) || own.find((one) => one.network === "student");
    }).filter(Boolean);
    const traces = series.map((one) => ({
      type: "bar", orientation: "h", name: plain(`${DATA.runs[one.run].name}, ${one.network}`),
      y: kept.map(([name]) => plain(name)), x: kept.map(([, i]) => one.values[i]),
      marker: { color: DATA.runs[one.run].color }, hovertemplate: "%{y}: %{x:.1f} %",
    }));
    const height = 70 + kept.length * Math.max(22, 8 + 9 * series.length);
    Plotly.react(byId("iou"), traces, layoutOf({
      height, bargap: 0.25, bargroupgap: 0.05, margin: { l: 20, r: 12, t: 8, b: 40 },
      xaxis: { ...axis, range: [0, 100], title: { text: "IoU in %", standoff: 6 }, fixedrange: true },
      yaxis: { ...yAxis, fixedrange: true, dtick: 1 },
    }), config);
  }

  const confusionChoice = byId("confusion-choice");
  DATA.confusions.forEach((one, i) => confusionChoice.append(element("option", {
    value: i, textContent: `${DATA.runs[one.run].name}, ${one.network}, ${one.dataset}`,
  })));
  const headline = DATA.confusions.map((one) => one.network).lastIndexOf("teacher");
  if (headline >= 0) confusionChoice.value = headline;
  byId("confusion-part").hidden = !DATA.confusions.length;
  byId("no-confusion").hidden = !!DATA.confusions.length;

  function drawConfusion() {
    const one = DATA.confusions[confusionChoice.value];
    if (!one) return;
    const kept = one.classes.map((name, i) => [name, i]).filter(([name]) => shownClasses.has(name));
    const names = kept.map(([name]) => plain(name));
    const share = kept.map(([, row]) => {
      const total = one.matrix[row].reduce((a, b) => a + b, 0);
      return kept.map(([, column]) => (total ? (100 * one.matrix[row][column]) / total : null));
    });
    const pixels = kept.map(([, row]) => kept.map(([, column]) => one.matrix[row][column]));
    const size = Math.min(byId("confusion").clientWidth, 780);
    const small = narrow();
    const text = share.map((row) => row.map((value) => (value === null || value < 0.5 ? "" : value.toFixed(0))));
    Plotly.react(byId("confusion"), [{
      type: "heatmap", x: names, y: names, z: share, customdata: pixels, text, zmin: 0, zmax: 100,
      texttemplate: small && names.length > 8 ? "" : "%{text}", textfont: { size: 10 }, xgap: 1, ygap: 1,
      colorscale: [[0, "#f3f6fa"], [0.25, "#b7d3ea"], [0.6, "#4a94c9"], [1, "#08306b"]],
      showscale: !small, colorbar: { title: { text: "%" }, thickness: 12, len: 0.8 },
      hovertemplate: "is %{y}, called %{x}<br>%{z:.1f} % (%{customdata:,} pixels)<extra></extra>",
    }], layoutOf({
      height: size, margin: { l: 20, r: 8, t: 8, b: 20 }, font: { ...font, size: small ? 9 : 11 },
      xaxis: { ...axis, showgrid: false, tickangle: -90, fixedrange: true, dtick: 1, title: { text: "prediction" } },
      yaxis: { ...yAxis, showgrid: false, autorange: "reversed", fixedrange: true, dtick: 1, title: { text: "ground truth" } },
    }), config);
  }

  // ---- pictures

  const decoded = new Map();
  function decode(text, length) {
    if (decoded.has(text)) return decoded.get(text);
    const bytes = atob(text), ids = new Uint8Array(length);
    let at = 0;
    for (let i = 0; i < bytes.length; i += 3) {
      const end = at + bytes.charCodeAt(i + 1) * 256 + bytes.charCodeAt(i + 2);
      ids.fill(bytes.charCodeAt(i), at, end);
      at = end;
    }
    decoded.set(text, ids);
    return ids;
  }

  const slider = byId("image-slider"), opacity = byId("opacity"), errors = byId("errors");
  byId("picture-part").hidden = !DATA.samples;
  byId("no-pictures").hidden = !!DATA.samples;

  function paint(canvas, ids, truth, compare) {
    const { classes: names, colors } = DATA.samples;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    const alpha = Math.round(2.55 * opacity.value);
    const on = names.map((name) => shownClasses.has(name));
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i], known = truth[i] < names.length;
      let color = colors[id], strength = alpha;
      if (compare) {
        color = [214, 39, 40];
        if (!known || id === truth[i] || !(on[id] || on[truth[i]])) strength = 0;
        else strength = Math.max(alpha, 140);
      } else if (id >= names.length || !on[id]) strength = 0;
      if (strength) pixels.data.set([...color, strength], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
  }

  function drawPictures() {
    if (!DATA.samples) return;
    const { images, classes: names } = DATA.samples;
    const image = images[slider.value];
    const length = image.width * image.height;
    const truth = decode(image.truth, length);
    byId("image-name").textContent = `${Number(slider.value) + 1} of ${images.length}: ${image.name}`;
    slider.setAttribute("aria-valuetext", byId("image-name").textContent);
    const shown = [{ title: "image", alt: `Test image ${image.name}` },
      { title: "ground truth", ids: truth, alt: `Ground truth of ${image.name}` }];
    for (const one of image.predictions) {
      if (!shownRuns.has(one.run)) continue;
      const name = DATA.runs[one.run].name, wrong = `${(100 * one.wrong).toFixed(1)} % wrong`;
      shown.push({ title: name, note: wrong, run: one.run, ids: decode(one.ids, length),
        alt: `Prediction of ${name} for ${image.name}: ${wrong} pixels` });
    }
    byId("pictures-grid").replaceChildren(...shown.map((one) => {
      const caption = element("figcaption");
      if (one.run !== undefined) caption.append(swatch(DATA.runs[one.run].color));
      caption.append(element("strong", { textContent: one.title }));
      if (one.note) caption.append(" ", element("span", { className: "help", textContent: one.note }));
      const stack = element("div", { className: "stack" }, element("img", { src: image.src, alt: one.ids ? "" : one.alt }));
      if (one.ids) {
        const canvas = element("canvas", { width: image.width, height: image.height });
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", one.alt);
        const compare = errors.checked && one.run !== undefined;
        stack.classList.toggle("grey", compare);
        paint(canvas, one.ids, truth, compare);
        canvas.addEventListener("pointermove", (event) => {
          const box = canvas.getBoundingClientRect();
          const x = Math.floor(((event.clientX - box.left) / box.width) * image.width);
          const y = Math.floor(((event.clientY - box.top) / box.height) * image.height);
          const at = y * image.width + x;
          const word = (id) => names[id] || "ignored";
          byId("under-pointer").textContent = `${one.title}: ${word(one.ids[at])} (ground truth: ${word(truth[at])})`;
        });
        stack.append(canvas);
      }
      return element("figure", {}, caption, stack);
    }));
  }

  if (DATA.samples) {
    slider.max = DATA.samples.images.length - 1;
    DATA.samples.classes.forEach((name) => byId("legend").append(element("li", {}, swatch(classColors[name]), name)));
  }
  slider.addEventListener("input", drawPictures);
  opacity.addEventListener("input", drawPictures);
  errors.addEventListener("change", drawPictures);

  // ---- prototypes

  function filterPrototypes() {
    for (const row of document.querySelectorAll(".prototypes")) row.hidden = !shownClasses.has(row.dataset.class);
    for (const part of document.querySelectorAll(".gallery")) {
      part.parentElement.hidden = !shownRuns.has(Number(part.dataset.run));
    }
  }

  function drawFiltered() {
    describeFilter();
    drawCurves();
    drawScores();
    drawConfusion();
    drawPictures();
    filterPrototypes();
  }
  scoreSet.addEventListener("change", drawScores);
  scoreNetwork.addEventListener("change", drawScores);
  confusionChoice.addEventListener("change", drawConfusion);
  for (const part of document.querySelectorAll("details"))
    part.addEventListener("toggle", () => part.querySelectorAll(".js-plotly-plot").forEach((p) => Plotly.Plots.resize(p)));
  drawFiltered();
})();
