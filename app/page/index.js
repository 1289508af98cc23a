// Fill in what only the running service knows: its own address, and the model that answers.
"use strict";

const here = new URL(".", location.href).href.replace(/\/$/, "");
for (const place of document.querySelectorAll(".origin")) {
  place.textContent = here;
}

async function showModel() {
  const place = document.getElementById("model");
  try {
    const response = await fetch("model");
    const model = await response.json();
    if (!response.ok) {
      place.textContent = model.detail;
      setTimeout(showModel, 2000);
      return;
    }
    const ap = Object.entries(model.ap).map(([kind, value]) => `${kind} AP ${(100 * value).toFixed(1)} %`);
    place.textContent = [`${model.name} on ${model.device} (${model.precision})`, ...ap].join(" · ");
    const notice = document.getElementById("notice");
    notice.hidden = model.notice === null;
    notice.textContent = model.notice;
    document.getElementById("categories").replaceChildren(
      ...model.categories.map((category) => {
        const item = document.createElement("li");
        item.textContent = category.name;
        return item;
      }),
    );
  } catch {
    place.textContent = "The service does not answer.";
  }
}

showModel();
