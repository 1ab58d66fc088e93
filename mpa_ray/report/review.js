{
  const study = data;
  const samples = study.samples;
  const questions = Object.entries(study.questions);
  const names = questions.map(([name]) => name);
  const DECISIONS = [
    ["keep", "Keep", "k"],
    ["drop", "Drop", "d"],
    ["fix", "Fix", "f"],
  ];
  // One entry a rating: two open pages never write over each other's.
  const PREFIX = `mpa_ray/rating/${study.run}/${study.blind ? "blind" : "open"}/`;
  const unkept = new Map();
  let rater = "";
  let current = 0;
  let marked = 0;

  const keyOf = (who, sample) => `${PREFIX}${encodeURIComponent(who)}/${sample.fingerprint}/${sample.id}`;
  const stored = (key) => unkept.get(key) ?? kept.get(key);

  function rating(sample) {
    const text = stored(keyOf(rater, sample));
    return text ? JSON.parse(text) : null;
  }

  function store(sample, given) {
    const { run, drawn, seed, blind } = study;
    const line = { mpa_ray_rating: 1, run, samples: drawn, seed, blind, rater, time: new Date().toISOString(), id: sample.id, fingerprint: sample.fingerprint };
    for (const name of [...names, "decision", "question", "answer"]) if (given[name] !== undefined && given[name] !== null) line[name] = given[name];
    write(keyOf(rater, sample), JSON.stringify(line));
  }

  function write(key, text) {
    if (kept.set(key, text) && kept.get(key) === text) {
      unkept.delete(key);
      return;
    }
    unkept.set(key, text);
    byId("trouble").hidden = false;
    byId("trouble").textContent = "This browser does not keep what is rated here. Export your ratings before you close or reload this page.";
  }

  const isRated = (sample) => {
    const given = rating(sample);
    return given !== null && names.every((name) => given[name] !== undefined);
  };

  function everyStored() {
    const keys = new Set(unkept.keys());
    try {
      for (let index = 0; index < localStorage.length; index++) keys.add(localStorage.key(index));
    } catch {
      // Nothing is kept in this browser; `unkept` is all there is.
    }
    return [...keys].filter((key) => key.startsWith(PREFIX)).sort();
  }

  function lines(who) {
    const start = who === null ? PREFIX : `${PREFIX}${encodeURIComponent(who)}/`;
    return everyStored().filter((key) => key.startsWith(start)).map(stored).filter(Boolean);
  }

  function raters() {
    return [...new Set(everyStored().map((key) => decodeURIComponent(key.slice(PREFIX.length).split("/")[0])))].sort();
  }

  // What is on the desk.

  function show() {
    const sample = samples[current];
    const given = rating(sample) ?? {};
    byId("place").textContent = `Sample ${current + 1} of ${samples.length}`;
    byId("image").hidden = sample.image < 0;
    byId("no-image").hidden = sample.image >= 0;
    if (sample.image >= 0) byId("image").src = `data:image/webp;base64,${study.images[sample.image]}`;
    const texts = [["Question", sample.question], ["Answer", sample.answer]];
    if (!study.blind) texts.push(["L-VLM", sample.lvlm ?? ""], ["S-VLM", sample.svlm ?? ""], ["File", sample.path, shown(sample.uri)]);
    byId("texts").replaceChildren(...texts.flatMap(([label, text, title]) => [element("dt", {}, label), element("dd", { dir: "auto", title }, shown(text || "(nothing)"))]));
    for (const [index, name] of names.entries()) {
      const row = byId("questions").children[index];
      row.classList.toggle("marked", index === marked);
      for (const button of row.querySelectorAll("button")) button.setAttribute("aria-pressed", String(given[name] === Number(button.value)));
    }
    if (!study.blind) showDecision(sample, given);
    const done = samples.filter(isRated).length;
    byId("done").textContent = `${done} of ${samples.length} rated`;
    byId("progress").max = samples.length || 1;
    byId("progress").value = done;
    byId("back").disabled = current === 0;
    byId("forward").disabled = current === samples.length - 1;
    for (const name of ["export", "export-all"]) byId(name).disabled = !lines(name === "export" ? rater : null).length;
  }

  function showDecision(sample, given) {
    for (const button of byId("decisions").children) button.setAttribute("aria-pressed", String(given.decision === button.value));
    byId("fixing").hidden = given.decision !== "fix";
    for (const name of ["question", "answer"]) {
      const field = byId(`fixed-${name}`);
      const text = given[name] ?? sample[name];
      // What is being typed stays as it is, spaces at its end too.
      if (document.activeElement !== field) field.value = text;
    }
  }

  function change(with_) {
    const sample = samples[current];
    store(sample, { ...rating(sample), ...with_ });
    show();
  }

  function answer(index, value, { goOn = false } = {}) {
    marked = index;
    const before = rating(samples[current])?.[names[index]];
    change({ [names[index]]: value === before && !goOn ? undefined : value });
    if (!goOn) return;
    if (marked < names.length - 1) marked += 1;
    else if (isRated(samples[current]) && current < samples.length - 1) return go(current + 1);
    show();
  }

  function decide(value) {
    const before = rating(samples[current])?.decision;
    const decision = value === before && value !== "fix" ? undefined : value;
    change({ decision, question: undefined, answer: undefined, ...(decision === "fix" ? fixed() : {}) });
    if (decision === "fix") byId("fixed-answer").focus();
  }

  function fixed() {
    const sample = samples[current];
    const text = (name) => byId(`fixed-${name}`).value.trim() || sample[name];
    return { question: text("question"), answer: text("answer") };
  }

  function go(to) {
    current = Math.max(0, Math.min(samples.length - 1, to));
    marked = 0;
    show();
  }

  function goToUnrated() {
    const order = [...samples.keys()].map((step) => (current + 1 + step) % samples.length);
    const next = order.find((index) => !isRated(samples[index]));
    if (next === undefined) byId("told").textContent = "All samples of this page are rated.";
    else go(next);
  }

  // In and out.

  function exportLines(who) {
    const name = who === null ? "all" : who.replace(/[^\p{L}\p{N}_-]+/gu, "_").slice(0, 60);
    const found = lines(who);
    save(`ratings-${name}-${study.run}.jsonl`, "application/jsonl", `${found.join("\n")}\n`);
    byId("told").textContent = `${found.length} ratings exported.`;
  }

  function readLine(text) {
    let line;
    try {
      line = JSON.parse(text);
    } catch {
      return null;
    }
    const texts = ["run", "rater", "time", "id", "fingerprint"];
    const valid = line && line.mpa_ray_rating === 1 && texts.every((name) => typeof line[name] === "string") && line.rater && typeof line.blind === "boolean";
    return valid ? line : null;
  }

  async function importFiles(files) {
    const counts = { taken: 0, older: 0, other: 0, bad: 0 };
    for (const file of files) {
      for (const text of (await file.text()).split("\n").filter((part) => part.trim())) {
        const line = readLine(text);
        if (!line) counts.bad += 1;
        else if (line.run !== study.run || line.blind !== study.blind) counts.other += 1;
        else {
          const key = keyOf(line.rater, line);
          const before = stored(key);
          if (before && JSON.parse(before).time >= line.time) counts.older += 1;
          else {
            write(key, JSON.stringify(line));
            counts.taken += 1;
          }
        }
      }
    }
    const parts = [`${counts.taken} ratings imported`];
    if (counts.older) parts.push(`${counts.older} are not newer than what is here`);
    if (counts.other) parts.push(`${counts.other} are of another run or page`);
    if (counts.bad) parts.push(`${counts.bad} lines are no ratings`);
    byId("told").textContent = `${parts.join("; ")}.`;
    listRaters();
    byId("export-all").disabled = !lines(null).length;
    if (rater) show();
  }

  function listRaters() {
    byId("raters").replaceChildren(...raters().map((name) => element("option", { value: name })));
  }

  // Set-up.

  for (const [index, [name, text]] of questions.entries()) {
    const buttons = [["Yes", 1], ["No", 0]].map(([label, value]) => {
      const button = element("button", { type: "button", value, "aria-pressed": "false" }, label);
      button.addEventListener("click", () => answer(index, value));
      return button;
    });
    const label = element("p", { id: `question-${name}` }, element("kbd", {}, String(index + 1)), ` ${text}`);
    byId("questions").append(element("div", { class: "asking", role: "group", "aria-labelledby": `question-${name}` }, label, element("div", { class: "answers" }, ...buttons)));
  }
  if (!study.blind) {
    for (const [value, label] of DECISIONS) {
      const button = element("button", { type: "button", value, "aria-pressed": "false" }, label);
      button.addEventListener("click", () => decide(value));
      byId("decisions").append(button);
    }
    for (const name of ["question", "answer"]) byId(`fixed-${name}`).addEventListener("input", () => change({ decision: "fix", ...fixed() }));
  }
  byId("who").addEventListener("submit", (event) => {
    event.preventDefault();
    rater = byId("rater").value.trim();
    if (!rater) return;
    kept.set("mpa_ray/rater", rater);
    byId("desk").hidden = false;
    byId("rater").blur();
    current = Math.max(0, samples.findIndex((sample) => !isRated(sample)));
    go(current);
  });
  byId("back").addEventListener("click", () => go(current - 1));
  byId("forward").addEventListener("click", () => go(current + 1));
  byId("unrated").addEventListener("click", goToUnrated);
  byId("export").addEventListener("click", () => exportLines(rater));
  byId("export-all").addEventListener("click", () => exportLines(null));
  byId("import").addEventListener("change", async (event) => {
    await importFiles(event.target.files);
    event.target.value = "";
  });
  window.addEventListener("storage", () => rater && show());
  window.addEventListener("beforeunload", (event) => unkept.size && event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("textarea, input:not([type=checkbox])")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (!rater || !byId("keys").checked || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    const decision = study.blind ? undefined : DECISIONS.find(([, , letter]) => letter === key);
    if (key === "y" || key === "n") answer(marked, key === "y" ? 1 : 0, { goOn: true });
    else if (key === "0") change({ [names[marked]]: undefined });
    else if (Number(key) >= 1 && Number(key) <= names.length) {
      marked = Number(key) - 1;
      show();
    } else if (key === "arrowleft") go(current - 1);
    else if (key === "arrowright") go(current + 1);
    else if (key === "u") goToUnrated();
    else if (decision) decide(decision[0]);
    else return;
    event.preventDefault();
  });
  listRaters();
  byId("export-all").disabled = !lines(null).length;
  byId("rater").value = kept.get("mpa_ray/rater") ?? "";
  byId("rater").focus();
}
