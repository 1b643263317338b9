"""La recherche telle qu'on s'en sert : un mot tapé dans la page, servie ou ouverte depuis le disque."""

import re
from urllib.parse import quote

import pytest
from test_book import english, misprints

PHONE = {"width": 360, "height": 740}


@pytest.fixture(params=["servie", "depuis le disque"])
def search(request, book, site, browser):
    """Cherche : les liens trouvés, dans l'ordre, et le texte de la page."""
    address = site if request.param == "servie" else book.as_uri()
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)

    def ask(words):
        page.goto(f"{address.rstrip('/')}/search.html?q={quote(words)}")
        page.wait_for_function("document.querySelector('.search-summary')?.innerText", timeout=10_000)
        found = page.locator("#search-results li > a")
        links = [(link.get_attribute("href"), link.inner_text()) for link in found.all()]
        assert errors == []
        return links, page

    yield ask
    page.close()


def pages(links):
    return {href.partition("#")[0] for href, _ in links}


@pytest.mark.parametrize(
    ("typed", "accented"),
    [
        ("singulieres", "singulières"),
        ("SINGULIÈRES", "singulières"),
        ("energie", "énergie"),
        ("decomposition en valeurs singulieres", "décomposition en valeurs singulières"),
        ("Equilibre", "équilibre"),
    ],
)
def test_accents_do_not_matter(search, typed, accented):
    expected, _ = search(accented)
    found, _ = search(typed)
    assert expected
    assert pages(expected) <= pages(found)


def test_singulieres_finds_the_section_and_its_chapter(search):
    found, _ = search("singulieres")
    assert "notebooks/11_00_introduction.html" in pages(found)
    found, _ = search("decomposition en valeurs singulieres")
    assert any(href.startswith("notebooks/11_00_introduction.html#") for href, _ in found)


def test_glossary_words_are_found_without_their_accents(search):
    found, _ = search("rang d'equilibre")
    assert any(href.startswith("book/glossaire.html#term-") for href, _ in found)


def test_a_word_of_no_page_finds_nothing(search):
    found, page = search("hippopotame")
    assert found == []
    assert "Aucune page" in page.locator(".search-summary").inner_text()


def test_summaries_surround_the_word(book, site, browser):
    """L'extrait montre le mot cherché, accents compris, et le marque."""
    page = browser.new_page()
    page.goto(f"{site.rstrip('/')}/search.html?q=singulieres")
    page.wait_for_selector("#search-results p.context .highlighted")
    for summary in page.locator("#search-results p.context").all():
        marked = [mark.inner_text().lower() for mark in summary.locator(".highlighted").all()]
        assert all(word.startswith("singul") for word in marked)
    assert "singulières" in page.locator("#search-results").inner_text()
    page.close()


@pytest.mark.parametrize("words", ["rang", "truncated_svd", "hippopotame"])
def test_search_page_speaks_french(search, words):
    _, page = search(words)
    html = re.sub(
        r'(?s)<ul class="search">.*?</ul>', "", page.content()
    )  # les extraits viennent des pages, code compris
    assert english(html) == []
    assert misprints(html) == []


@pytest.mark.parametrize("name", ["notebooks/11_00_introduction", "book/api", "book/glossaire"])
def test_scripts_speak_french(book, browser, name):
    """Ce que les scripts ajoutent à la page : boutons de copie, infobulles, blocs repliés."""
    page = browser.new_page()
    page.goto((book / f"{name}.html").as_uri())
    page.wait_for_function("document.readyState === 'complete'")
    assert english(page.content()) == []
    page.close()


def test_search_fits_a_phone(book, browser):
    page = browser.new_page(viewport=PHONE)
    page.goto(f"{(book / 'search.html').as_uri()}?q=rang")
    page.wait_for_function("document.querySelectorAll('#search-results li').length > 3")
    assert page.evaluate("document.scrollingElement.scrollWidth <= document.scrollingElement.clientWidth")
    page.close()
