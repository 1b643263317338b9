// La page de recherche, sans égard aux accents : la question est repliée comme l'index (book/_ext/recherche.py).
// Chargé en « defer » : après searchtools.js et l'index, avant que la recherche ne commence.
"use strict";

{
  const fold = (text) =>
    text
      .replace(/œ/g, "oe")
      .replace(/æ/g, "ae")
      .replace(/Œ/g, "OE")
      .replace(/Æ/g, "AE")
      .normalize("NFD")
      .replace(/\p{M}/gu, "");

  // De même longueur que le texte : une position y vaut dans l'un et dans l'autre.
  const foldInPlace = (text) =>
    [...text].map((letter) => (fold(letter).length === letter.length ? fold(letter) : letter)).join("");

  // --- Les mots : une racine sans accents, comme dans l'index ---
  const FrenchStemmer = Stemmer;
  Stemmer = function () {
    const stemmer = new FrenchStemmer();
    this.stemWord = (word) => fold(stemmer.stemWord(word)).replace(/ier$/, "i");
  };

  // --- Les titres et les mots du glossaire ---
  // Sphinx les compare tels quels ; on ajoute, en tête, ceux qu'un accent ou une apostrophe lui a fait manquer.
  const missed = (named, query, result) => {
    const plain = (text) => fold(text.toLowerCase()).replace(/\s+/g, " ").replace(/’/g, "'");
    const folded = plain(query);
    return Object.entries(named)
      .filter(([name]) => !name.toLowerCase().includes(query))
      .filter(([name]) => plain(name).includes(folded) && folded.length >= name.length / 2)
      .flatMap(([name, places]) => places.map(([file, id]) => result(name, file, id)));
  };

  const performSearch = Search._performSearch;
  Search._performSearch = (question, ...terms) => {
    const index = Search._index;
    const query = question.toLowerCase().trim();
    const place = (title, file, id) => [
      index.docnames[file],
      title,
      id ? `#${id}` : "",
      null,
      15,
      index.filenames[file],
    ];
    const page = (file) => index.titles[file];
    Search.status.setAttribute("role", "status");
    return [
      ...performSearch(question, ...terms),
      ...missed(index.indexentries, query, (_name, file, id) => place(page(file), file, id)),
      ...missed(index.alltitles, query, (name, file, id) =>
        place(page(file) === name ? name : `${page(file)} > ${name}`, file, id),
      ),
    ];
  };

  // --- L'extrait : autour du premier mot trouvé, tous marqués ---
  Search.makeSearchSummary = (html, keywords, anchor) => {
    const summary = document.createElement("p");
    summary.classList.add("context");
    const text = Search.htmlToText(html, anchor).replace(/\s+/g, " ").trim();
    const roots = [...keywords].map(_escapeRegExp).join("|");
    const found = roots ? [...foldInPlace(text.toLowerCase()).matchAll(new RegExp(`(?:${roots})\\p{L}*`, "gu"))] : [];
    const start = Math.max((found[0]?.index ?? 0) - 120, 0);
    const end = start + 240;
    let position = start;
    summary.append(start > 0 ? "…" : "");
    for (const { index, 0: word } of found.filter((match) => match.index + match[0].length <= end)) {
      const mark = document.createElement("span");
      mark.className = "highlighted";
      mark.textContent = text.slice(index, index + word.length);
      summary.append(text.slice(position, index), mark);
      position = index + word.length;
    }
    summary.append(text.slice(position, end), end < text.length ? "…" : "");
    return summary;
  };

  // Un livre ouvert depuis le disque ne peut pas lire ses autres pages : pas d'extrait, plutôt qu'une erreur par page.
  if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

  // --- Les phrases que Sphinx traduit mal ---
  Object.assign(Documentation.TRANSLATIONS, {
    "Preparing search...": "Préparation de la recherche…",
    "Search finished, found ${resultCount} page(s) matching the search query.": "Résultats\u00a0: ${resultCount}.",
    "Your search did not match any documents. Please make sure that all words are spelled correctly and that you've selected enough categories.":
      "Aucune page ne contient tous ces mots. Vérifiez leur orthographe, ou essayez-en d’autres.",
  });
  for (const names of Object.values(Search._index.objnames)) names[2] = names[2].replace(/^Python (.*)$/, "$1 Python");
}
