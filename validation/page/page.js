"use strict";
(() => {
  const root = document.documentElement, theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  const thumbs = [...document.querySelectorAll(".thumb")], dialog = document.getElementById("large");
  const picture = document.getElementById("large-picture"), frame = picture.parentElement, unblur = document.getElementById("unblur");
  let at = 0;
  const show = (place) => {
    at = (place + thumbs.length) % thumbs.length;
    const thumb = thumbs[at], image = thumb.querySelector("img");
    const hidden = thumb.classList.contains("blurred");
    frame.classList.toggle("blurred", hidden);
    unblur.hidden = !hidden;
    picture.src = image.src;
    picture.alt = image.alt;
    picture.className = image.className;
    document.getElementById("large-caption").textContent = thumb.dataset.caption;
    document.getElementById("large-place").textContent = `${at + 1} of ${thumbs.length}`;
  };
  thumbs.forEach((thumb, place) => thumb.addEventListener("click", () => {
    if (thumb.classList.contains("blurred")) {
      thumb.classList.remove("blurred");
      return;
    }
    show(place);
    dialog.showModal();
  }));
  const clear = () => {
    if (!thumbs.length) return;
    thumbs[at].classList.remove("blurred");
    frame.classList.remove("blurred");
    if (unblur === document.activeElement) document.getElementById("next").focus();
    unblur.hidden = true;
  };
  frame.addEventListener("click", clear);
  unblur.addEventListener("click", clear);
  document.getElementById("back").addEventListener("click", () => show(at - 1));
  document.getElementById("next").addEventListener("click", () => show(at + 1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => thumbs[at] && thumbs[at].focus());
  document.addEventListener("keydown", (event) => {
    if (!dialog.open) return;
    if (event.key === "ArrowLeft") show(at - 1);
    else if (event.key === "ArrowRight") show(at + 1);
    else return;
    event.preventDefault();
  });
})();
