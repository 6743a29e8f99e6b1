"use strict";
/* Makes the articles of answers.html.j2 from its JSON block, some at a time. Data becomes text and attributes, never markup. */
(() => {
  const byId = (id) => document.getElementById(id);
  const { noun, answers, pictures } = JSON.parse(byId("data").textContent);
  const [list, more, filters, blank] = ["answers", "more", "filters", "answer"].map(byId);
  const AT_A_TIME = 40;
  const MARKS = { right: "✓ right", wrong: "✗ wrong", unusable: "unusable" };
  let chosen = answers;

  function pictureOf([index, label]) {
    const { source, width, height, size, exact } = pictures[index];
    const button = document.createElement("button");
    const image = document.createElement("img");
    Object.assign(image, { loading: "lazy", decoding: "async", width, height, src: source, alt: `${label}, ${size}`, className: exact ? "exact" : "" });
    Object.assign(button, { type: "button", title: `${label}, ${size}` });
    button.setAttribute("aria-pressed", "false");
    button.style.setProperty("--large", exact ? `${width}px` : "auto");
    button.append(image);
    return button;
  }

  function pair(name, value, kind) {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    text.textContent = value === "" ? "(nothing)" : value;
    text.className = kind || (value === "" ? "faint" : "");
    text.dir = "auto";
    return [term, text];
  }

  function article(answer) {
    const item = blank.content.cloneNode(true);
    const at = (name) => item.querySelector(name);
    const fill = (name, text) => (text ? (at(name).textContent = text) : at(name).remove());
    fill(".verdict", MARKS[answer.kind]);
    at(".verdict")?.classList.add(answer.kind);
    fill(".task", answer.task);
    fill(".id", answer.id);
    fill(".question", answer.question);
    at(".pairs").append(...answer.pairs.flatMap((row) => pair(...row)));
    if (answer.pictures) at(".pictures").append(...answer.pictures.map(pictureOf));
    else at(".pictures").remove();
    return item;
  }

  function showMore() {
    const next = chosen.slice(list.children.length, list.children.length + AT_A_TIME);
    list.append(...next.map(article));
    more.hidden = list.children.length >= chosen.length;
  }

  function choose() {
    const wanted = new FormData(filters);
    const [kind, task] = [wanted.get("kind"), wanted.get("task")];
    chosen = answers.filter((answer) => (!kind || answer.kind === kind) && (!task || answer.task === task));
    byId("count").textContent = `${chosen.length.toLocaleString("en")} of ${answers.length.toLocaleString("en")} ${noun}`;
    list.replaceChildren();
    showMore();
  }

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  });
  more.addEventListener("click", () => {
    const first = list.children.length;
    showMore();
    const item = list.children[first];
    if (item) Object.assign(item, { tabIndex: -1 }).focus();
  });
  filters.addEventListener("change", choose);
  filters.addEventListener("submit", (event) => event.preventDefault());
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && showMore(), { rootMargin: "800px" }).observe(more);
  filters.hidden = false;
  filters.reset(); /* a page that is loaded again keeps no earlier choice */
  choose();
})();
