"use strict";
// Every text is set as text: questions and passages are untrusted.
(async () => {
  const PAGE = 50, SURE = 0.8, SUPPORTED = 0.6;
  // The words of exam.data.words; in scripts without blanks, two characters at a time.
  const MARKS = "[\\p{Mn}\\p{Mc}]*";
  const UNSPACED = "(?:ー|(?=\\p{L})[" + ["Han", "Hiragana", "Katakana", "Hangul", "Bopomofo", "Yi", "Tangut", "Thai",
    "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"]
    .map((script) => `\\p{Script=${script}}`).join("") + "])";
  const WORD = new RegExp(`${UNSPACED}${MARKS}|(?:(?!${UNSPACED})[\\p{L}\\p{N}\\p{Mn}\\p{Mc}])+`, "gu");
  const CHARACTER = new RegExp(`^${UNSPACED}`, "u");
  const STOPWORDS = new Set();

  async function unpacked(id) {
    const packed = document.getElementById(id).content.textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  async function drawCharts() {
    const places = document.querySelectorAll("[data-chart]");
    if (!places.length) return;
    const specs = await unpacked("specs");
    for (const place of places) {
      await vegaEmbed(place, specs[Number(place.dataset.chart)], { actions: false, renderer: "svg" });
    }
  }

  const folded = (text) => text.normalize("NFKC").toLowerCase().normalize("NFKC");

  function words(text) {
    const all = [];
    let last = null;
    for (const { 0: word, index } of folded(text).matchAll(WORD)) {
      const isCharacter = CHARACTER.test(word);
      if (isCharacter && last && last.end === index) all.push(last.word + word);
      if (!isCharacter || /\p{Script=Han}/u.test(word)) all.push(word);
      last = isCharacter ? { word, end: index + word.length } : null;
    }
    return all;
  }

  function marked(text, wanted) {
    const paragraph = element("p");
    let at = 0;
    const found = [...text.matchAll(WORD)].map(({ 0: word, index }) => ({ word: folded(word), index, end: index + word.length }));
    found.forEach(({ word, index, end }, number) => {
      const [before, after] = [found[number - 1], found[number + 1]];
      const pairs = CHARACTER.test(word)
        ? [before?.end === index && before.word + word, after?.index === end && word + after.word] : [];
      if (![word, ...pairs].some((one) => wanted.has(one))) return;
      paragraph.append(text.slice(at, index), element("mark", "", text.slice(index, end)));
      at = end;
    });
    paragraph.append(text.slice(at));
    return paragraph;
  }

  function verdict(question) {
    if (question.label === null) return "";
    return question.first === question.label ? "right" : "wrong";
  }

  const TESTS = {
    all: () => true,
    right: (q) => verdict(q) === "right",
    wrong: (q) => verdict(q) === "wrong",
    sure: (q) => q.top >= SURE,
    unsure: (q) => q.top < SURE,
    missing: (q) => !q.passages.length || (q.support !== null && q.support <= SUPPORTED),
  };
  const belief = (q) => (q.label === null ? 1 : q.chances[q.label]);
  const ORDERS = {
    given: () => 0,
    truth: (a, b) => belief(a) - belief(b),
    unsure: (a, b) => a.top - b.top,
    sure: (a, b) => b.top - a.top,
  };

  function filled(question, details) {
    const inside = element("div", "inside");
    const passages = element("div", "passages");
    const buttons = question.options.map((text, place) => {
      const button = element("button", "option" + (place === question.label ? " truth" : ""));
      button.type = "button";
      const chance = question.chances[place];
      const bar = element("span", "bar");
      bar.style.width = `${Math.max(0.5, 100 * chance)}%`;
      button.append(
        element("span", "letter", String.fromCharCode(65 + place)),
        element("span", "text", text),
        element("span", "chance", `${(100 * chance).toFixed(1)} %`),
        bar,
      );
      button.addEventListener("click", () => show(place));
      return button;
    });
    const asked = new Set(words(question.prompt));

    function show(place) {
      buttons.forEach((button, own) => button.setAttribute("aria-pressed", String(own === place)));
      const wanted = new Set(words(question.options[place]).filter((word) => !asked.has(word) && !STOPWORDS.has(word)));
      if (!question.passages.length) return;
      passages.replaceChildren(...question.passages.map((passage) => {
        const made = element("div", "passage");
        made.append(element("h4", "", `${passage.rank}. ${passage.title || "passage"}`), marked(passage.text, wanted));
        return made;
      }));
    }

    const letter = question.label === null ? "unknown" : String.fromCharCode(65 + question.label);
    const support = question.support === null ? "" : ` · ${(100 * question.support).toFixed(0)} % of its new words stand in the passages`;
    inside.append(element("p", "muted", `Right: ${letter}${support}. Choose an option to mark its words in the passages.`));
    inside.append(...buttons, passages);
    if (!question.passages.length) passages.append(element("p", "muted", "No passages were read."));
    show(question.label === null ? question.first : question.label);
    details.append(inside);
  }

  function row(question) {
    const item = element("li"), details = element("details"), summary = element("summary");
    const state = verdict(question);
    const mark = { right: "✓", wrong: "✗", "": "·" }[state];
    const sign = element("span", state ? `verdict-${state}` : "muted", mark);
    sign.setAttribute("aria-label", state || "answer unknown");
    summary.append(sign, element("span", "prompt", question.prompt),
      element("span", "muted", `${(100 * question.top).toFixed(0)} %`));
    details.append(summary);
    details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) filled(question, details); });
    item.append(details);
    return item;
  }

  async function browse() {
    if (!document.getElementById("browser")) return;
    const { questions, stopwords } = await unpacked("data");
    stopwords.forEach((word) => STOPWORDS.add(word));
    questions.forEach((question) => {
      question.top = question.chances[question.first];
    });
    const list = document.getElementById("list"), more = document.getElementById("more");
    const search = document.getElementById("search"), sort = document.getElementById("sort");
    const count = document.getElementById("count");
    const chips = [...document.querySelectorAll("[data-show]")];
    let found = [], shown = 0, chosen = "all";

    function extend() {
      list.append(...found.slice(shown, shown + PAGE).map(row));
      shown = Math.min(found.length, shown + PAGE);
      more.hidden = shown === found.length;
      count.textContent = `${found.length.toLocaleString("en")} of ${questions.length.toLocaleString("en")} questions`;
    }

    function text(question) {
      question.text ??= [question.id, question.prompt, ...question.options,
        ...question.passages.map((p) => `${p.title} ${p.text}`)].join("\n").toLowerCase();
      return question.text;
    }

    function update() {
      const wanted = search.value.trim().toLowerCase();
      found = questions.filter((q) => TESTS[chosen](q) && (!wanted || text(q).includes(wanted)));
      found.sort(ORDERS[sort.value]);
      shown = 0;
      list.replaceChildren();
      extend();
    }

    let waiting = 0;
    search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 120); });
    sort.addEventListener("change", update);
    more.addEventListener("click", extend);
    document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
    chips.forEach((chip) => chip.addEventListener("click", () => {
      chosen = chip.dataset.show;
      chips.forEach((other) => other.setAttribute("aria-pressed", String(other === chip)));
      update();
    }));
    update();
  }

  await browse();
  await drawCharts();
  document.documentElement.dataset.ready = "true";
})();
