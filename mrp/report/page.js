// Values under the pointer, and series that can be switched off: the page says everything without it.
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), value = figure.querySelector(".value");
  const series = [...svg.querySelectorAll("g.series")].map((group) => ({
    group, name: group.dataset.name, at: JSON.parse(group.dataset.at), text: JSON.parse(group.dataset.text),
  }));
  const cursor = svg.querySelector(".cursor");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const shown = series.filter((one) => !one.group.classList.contains("hidden") && one.at.length);
    const found = shown.map((one) => {
      let best = 0;
      one.at.forEach((at, number) => { if (Math.abs(at - x) < Math.abs(one.at[best] - x)) best = number; });
      return { at: one.at[best], text: (series.length > 1 ? one.name + ": " : "") + one.text[best] };
    });
    if (!found.length) return;
    const nearest = found.reduce((a, b) => Math.abs(a.at - x) <= Math.abs(b.at - x) ? a : b);
    cursor.setAttribute("x1", nearest.at);
    cursor.setAttribute("x2", nearest.at);
    cursor.classList.remove("hidden");
    value.textContent = found.map((one) => one.text).join("   ");
  });
  svg.addEventListener("pointerleave", () => { cursor.classList.add("hidden"); value.textContent = ""; });
  figure.querySelectorAll(".legend [data-of]").forEach((key) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(...key.childNodes);
    key.replaceChildren(button);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(on));
      series.filter((one) => one.name === key.dataset.of).forEach((one) => one.group.classList.toggle("hidden", !on));
    });
  });
}
