{
  const CARDS = 24;
  const LONG = 320;
  const KINDS = [
    ["all", "All", () => true],
    ["parity", "Parity", (sample) => sample.verdict === "parity"],
    ["svlm_correct", "S-VLM right", (sample) => sample.verdict === "svlm_correct"],
    ["lvlm_inconsistent", "L-VLM inconsistent", (sample) => sample.verdict === "lvlm_inconsistent"],
    ["quarantined", "Quarantined", (sample) => sample.verdict === "quarantined"],
    ["learned", "Learned", (sample) => sample.change === "learned"],
    ["forgotten", "Forgotten", (sample) => sample.change === "forgotten"],
  ];
  const ANSWERS = [
    ["answer", "annotation"],
    ["lvlm", "L-VLM"],
    ["svlm", "S-VLM"],
    ["after", "after MPA"],
  ];

  const samples = data.samples;
  const searched = ["question", "answer", "lvlm", "svlm", "after", "uri", "reason", "detail", "id"];
  const texts = samples.map((sample) => searched.map((name) => sample[name] ?? "").join("\n").toLowerCase());
  let kind = KINDS[0];
  let found = samples;
  let first = 0;

  function filter() {
    // Words in any order; "in quotes", together.
    const words = (byId("search").value.toLowerCase().match(/"[^"]+"|\S+/g) ?? []).map((word) => word.replace(/^"(.+)"$/, "$1"));
    const type = byId("type").value;
    found = samples.filter((sample, index) => kind[2](sample) && (!type || sample.type === type) && words.every((word) => texts[index].includes(word)));
    first = 0;
    show();
  }

  function show() {
    const last = Math.min(first + CARDS, found.length);
    byId("found").textContent = found.length ? `${first + 1}–${last} of ${found.length.toLocaleString("en")}` : "No sample fits";
    byId("previous").disabled = first === 0;
    byId("next").disabled = last >= found.length;
    byId("cards").replaceChildren(...found.slice(first, last).map(card));
  }

  function turn(by) {
    first += by;
    show();
    byId("samples").scrollIntoView();
    byId("found").focus({ preventScroll: true });
  }

  function long(text) {
    const whole = shown(text);
    const holder = element("span", { class: "text", dir: "auto" }, whole);
    if (whole.length <= LONG) return holder;
    holder.textContent = `${whole.slice(0, LONG)}… `;
    const more = element("button", { type: "button", class: "link" }, "all");
    more.addEventListener("click", () => (holder.textContent = whole));
    holder.append(more);
    return holder;
  }

  function card(sample) {
    const picture = sample.image < 0
      ? element("div", { class: "none" }, "no image")
      : element("img", { src: `data:image/webp;base64,${data.images[sample.image]}`, alt: "", decoding: "async" });
    const badges = element("p", { class: "badges" }, element("span", { class: `verdict ${sample.verdict}` }, sample.verdict.replace("_", " ")));
    if (sample.change) badges.append(" ", element("span", { class: `verdict ${sample.change}` }, sample.change.replace("_", " ")));
    const body = element("div", { class: "body" }, badges);
    if (sample.question !== undefined) body.append(element("p", { class: "question" }, long(sample.question)));
    if (sample.reason) body.append(element("p", { class: "question" }, long(sample.reason.replaceAll("_", " "))));
    if (sample.detail) body.append(element("p", { class: "detail" }, long(sample.detail)));
    const answers = element("dl", { class: "texts" });
    for (const [name, label] of ANSWERS) {
      if (sample[name] === undefined) continue;
      const same = sample[name].trim().toLowerCase() === (sample.answer ?? "").trim().toLowerCase();
      answers.append(element("dt", {}, label), element("dd", { class: name === "answer" ? "reference" : same ? "same" : "differs" }, long(sample[name] || "(nothing)")));
    }
    if (answers.children.length) body.append(answers);
    body.append(element("p", { class: "uri", title: shown(sample.uri) }, element("bdi", {}, shown(sample.path))));
    return element("li", {}, element("article", { class: "card" }, element("div", { class: "picture" }, picture), body));
  }

  for (const entry of KINDS) {
    const count = samples.filter(entry[2]).length;
    if (!count) continue;
    const chip = element("button", { type: "button", "aria-pressed": String(entry === kind), "data-kind": entry[0] }, `${entry[1]} `, element("span", { class: "count" }, count.toLocaleString("en")));
    chip.addEventListener("click", () => {
      kind = entry;
      for (const other of byId("kinds").children) other.setAttribute("aria-pressed", String(other === chip));
      filter();
    });
    byId("kinds").append(chip);
  }
  for (const type of [...new Set(samples.map((sample) => sample.type).filter(Boolean))].sort()) byId("type").append(element("option", { value: type }, type));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", filter);
  byId("type").addEventListener("change", filter);
  byId("previous").addEventListener("click", () => turn(-CARDS));
  byId("next").addEventListener("click", () => turn(CARDS));
  byId("found").tabIndex = -1;
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    byId("search").focus();
  });
  const settings = byId("settings");
  if (settings) {
    byId("save").hidden = false;
    byId("save").addEventListener("click", () => save("rerun.yaml", "application/yaml", settings.textContent));
  }
  filter();
}
