// Une formule trop large défile dans sa boîte : au clavier aussi, donc elle doit pouvoir recevoir le focus. Le thème
// le fait pour le code et les tableaux, pas pour les formules. Seulement tant qu'elles débordent : rien à y faire sinon.
"use strict";

{
  const FORMULAS = 'div.math, mjx-container[display="true"]';

  const update = () => {
    for (const box of document.querySelectorAll(FORMULAS)) {
      const scrolls = box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX === "auto";
      if (scrolls) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", "Formule qui défile");
      } else if (box.getAttribute("role") === "group") {
        for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
      }
    }
  };

  // La taille d'une boîte change avec la fenêtre, et quand MathJax y écrit la formule.
  const sizes = new ResizeObserver(update);
  const watch = () => {
    for (const box of document.querySelectorAll(FORMULAS)) sizes.observe(box);
    update();
  };

  const ready = () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(watch);
  if (document.readyState === "complete") ready();
  else window.addEventListener("load", ready);
}
