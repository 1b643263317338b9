// Sur le papier : le thème clair, même lu dans le noir, et les blocs repliés ouverts, puisqu'on n'y clique pas.
// Tout revient comme avant une fois la page imprimée.
"use strict";

{
  const root = document.documentElement;
  let restore = () => {};

  window.addEventListener("beforeprint", () => {
    const theme = root.dataset.theme;
    const closed = [...document.querySelectorAll("details:not([open])")];
    root.dataset.theme = "light";
    for (const fold of closed) fold.open = true;
    restore = () => {
      root.dataset.theme = theme;
      for (const fold of closed) fold.open = false;
    };
  });

  window.addEventListener("afterprint", () => {
    restore();
    restore = () => {};
  });
}
