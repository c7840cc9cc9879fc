"use strict";

(() => {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const plots = [];
  const rests = [];
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  const show = (chart, value) => {
    if (value === null || value === undefined) return "–";
    if (chart.share) return `${(100 * value).toFixed(1)}%`;
    const text = Number(value.toPrecision(4)).toString();
    return chart.unit ? `${text} ${chart.unit}` : text;
  };

  // An axis' labels: as many digits as tell its ticks apart, less the noise of binary fractions; all with
  // an exponent where the largest is too small or too large to be read without.
  const labels = (chart, values) => {
    const plain = values.map((value) =>
      value === null ? null : Number((chart.share ? 100 * value : value).toPrecision(14)));
    const largest = Math.max(...plain.map((value) => Math.abs(value ?? 0)));
    const isFar = largest !== 0 && (largest < 1e-3 || largest >= 1e6);
    return plain.map((value) => {
      if (value === null) return "";
      const text = isFar && value !== 0
        ? value.toExponential().replace("e+", "e")
        : value.toLocaleString("en", { maximumSignificantDigits: 14 });
      return chart.share ? `${text}%` : text;
    });
  };

  const place = (chart, at) => {
    if (at === null || at === undefined) return "–";
    return chart.marks.length ? chart.marks[at] ?? "" : at.toLocaleString("en");
  };

  const lines = (chart) => {
    let learned = 0;
    let references = 0;
    return chart.series.map((series, index) => {
      const name = series.reference
        ? `--reference-${(references++ % 3) + 1}`
        : `--series-${(learned++ % 8) + 1}`;
      const count = chart.data[index + 1].filter((value) => value !== null).length;
      return {
        label: series.name,
        colour: name,
        stroke: () => colour(name),
        width: series.reference ? 1.5 : 2,
        dash: series.reference ? [6, 4] : undefined,
        spanGaps: true,
        points: { show: !series.reference && count <= 40, size: 6, fill: () => colour(name) },
        value: (_, value) => show(chart, value),
      };
    });
  };

  // The place nearest to this one at which a column has a value.
  const nearest = (column, at) => {
    for (let away = 0; at !== null && away < column.length; away++) {
      if (column[at - away] !== null && column[at - away] !== undefined) return at - away;
      if (column[at + away] !== null && column[at + away] !== undefined) return at + away;
    }
    return at;
  };

  const axis = (more) => ({
    stroke: () => colour("--muted"),
    grid: { stroke: () => colour("--grid"), width: 1 },
    ticks: { stroke: () => colour("--grid"), width: 1, size: 4 },
    font: "12px system-ui, sans-serif",
    ...more,
  });

  const draw = (element, chart) => {
    const options = {
      width: element.clientWidth,
      height: 260,
      scales: {
        x: { time: false },
        y: chart.logarithmic
          ? { distr: 3 }
          : { range: chart.zero ? (_, low, high) => [0, high * 1.08 || 1] : undefined },
      },
      axes: [
        axis({
          space: 60,
          size: 34,
          incrs: chart.marks.length ? [1, 2, 5, 10, 20] : undefined,
          values: (_, values) => values.map((value) =>
            chart.marks.length ? chart.marks[value] ?? "" : value.toLocaleString("en", { maximumSignificantDigits: 14 })),
        }),
        axis({
          size: (_, shown) => Math.max(58, 14 + 7 * Math.max(0, ...(shown ?? []).map((text) => text.length))),
          values: (_, values) => labels(chart, values),
        }),
      ],
      series: [
        { label: chart.horizontal, value: (_, at) => place(chart, at) },
        ...lines(chart),
      ],
      cursor: {
        sync: chart.marks.length ? undefined : { key: "steps", scales: ["x", null] },
        dataIdx: (_, series, at) => nearest(chart.data[series], at),
      },
      legend: {
        markers: {
          fill: (_, index) => index && !chart.series[index - 1].reference ? lineColour(index) : "transparent",
          stroke: (_, index) => lineColour(index),
          dash: (_, index) => index && chart.series[index - 1].reference ? "dashed" : "solid",
          width: 2,
        },
      },
    };
    const names = options.series.map((series) => series.colour);
    const lineColour = (index) => names[index] ? `var(${names[index]})` : "transparent";
    const plot = new uPlot(options, chart.data, element);
    plots.push(plot);
    // Where nothing is pointed at, the legend tells the newest values.
    const newest = () => plot.setLegend({
      idxs: chart.data.map((column) => nearest(column, column.length - 1)),
    });
    rests.push(newest);
    setTimeout(newest);
    plot.over.addEventListener("mouseleave", () => setTimeout(() => rests.forEach((rest) => rest())));
    new ResizeObserver(() => {
      if (element.clientWidth && element.clientWidth !== plot.width) {
        plot.setSize({ width: element.clientWidth, height: 260 });
      }
    }).observe(element);
    return plot;
  };

  for (const element of document.querySelectorAll("[data-chart]")) {
    draw(element, charts.find((chart) => chart.name === element.dataset.chart));
  }

  // For tests, which cannot read what is drawn.
  window.simmim = { draw, plots };

  // uPlot asks for its colours whenever it draws.
  const redraw = () => plots.forEach((plot) => plot.redraw(false));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", redraw);
  document.getElementById("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
    root.dataset.theme = isDark ? "light" : "dark";
    redraw();
  });

  const slider = document.getElementById("step");
  if (!slider) return;
  const gallery = JSON.parse(document.getElementById("gallery").textContent);
  const shown = document.getElementById("step-shown");
  const play = document.getElementById("play");
  const pictures = [...document.querySelectorAll("[data-steps]")];
  let timer = null;

  const turn = () => {
    const at = Number(slider.value);
    shown.textContent = gallery.steps[at].toLocaleString("en");
    slider.setAttribute("aria-valuetext", `step ${gallery.steps[at]}`);
    for (const picture of pictures) {
      const source = gallery.images[Number(picture.dataset.steps)][at];
      picture.style.visibility = source ? "visible" : "hidden";
      if (source) picture.src = source;
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  slider.addEventListener("input", () => { stop(); turn(); });
  play.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (slider.value === slider.max) slider.value = 0;
    turn();
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      turn();
      if (slider.value === slider.max) stop();
    }, 600);
  });
})();
