"""report.html in Chromium: it sorts, filters, zooms, opens rows, changes its theme and prints, and loads nothing."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
import report_factory as made
from page_factory import five_processes, hostile_run, page_of, run_of

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Chromium without a window and with a new profile."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    service = shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.skip("no Chromium with its chromedriver on PATH (apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "about:blank"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made_driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield made_driver
    made_driver.quit()


class Page:
    """An open page, and what was logged since it was opened."""

    def __init__(self, driver, file):
        self.driver, self.address = driver, file.as_uri()
        driver.get("about:blank")
        driver.get_log("performance")
        driver.get_log("browser")
        driver.get(self.address)
        self.wait("return document.documentElement.dataset.ready === 'yes'")

    def wait(self, script):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 120, poll_frequency=0.05).until(lambda d: d.execute_script(script))

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def click(self, selector):
        self.js("document.querySelector(arguments[0]).click()", selector)

    def column(self, title):
        """The texts of a column, as shown."""
        return self.js(
            """
            const heads = [...document.querySelectorAll('#cases thead th')];
            const place = heads.findIndex((head) => head.textContent.trim() === arguments[0]);
            return [...document.querySelectorAll('#cases tbody tr')]
              .filter((row) => row.children.length === heads.length).map((row) => row.children[place].textContent)""",
            title,
        )

    def sort(self, title):
        """Click a column's title."""
        self.js(
            "[...document.querySelectorAll('#cases thead th')]"
            ".find((head) => head.textContent.trim() === arguments[0]).click()",
            title,
        )

    def choose(self, label, text, place="filters"):
        self.js(
            """
            const label = [...document.querySelectorAll(`#${arguments[2]} label`)]
              .find((each) => each.firstChild.textContent === arguments[0]);
            const select = label.querySelector('select');
            select.value = [...select.options].find((option) => option.textContent === arguments[1]).value;
            select.dispatchEvent(new Event('change'))""",
            label,
            text,
            place,
        )

    @property
    def errors(self):
        """What the console has, warnings included."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    @property
    def requests(self):
        """Every address that was asked for, but what the page made itself."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        found = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {address for address in found if not address.startswith(("blob:", "data:", "about:"))}

    def check_quiet(self):
        assert self.errors == []
        assert self.requests == {self.address}
        assert self.js("return window.hit") is None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {
        "quick": page_of(folder, run_of(folder, made.quick_results(), "quick"), name="quick-page"),
        "five": page_of(folder, run_of(folder, five_processes(), "five", num_processes=5), name="five-page"),
        "hostile": page_of(folder, hostile_run(folder), name="hostile-page"),
        "pair": page_of(
            folder,
            run_of(folder, made.sparsity_results(), "a"),
            run_of(folder, made.quick_results(), "b", run_id="other"),
            name="pair-page",
        ),
    }


@pytest.fixture
def quick(driver, files):
    page = Page(driver, files["quick"])
    yield page
    page.check_quiet()


def seconds(text):
    number, unit = text.split()[:2]
    return float(number) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]


def test_a_click_on_a_title_sorts_by_the_figure_and_missing_ones_stay_last(quick):
    for is_falling in (False, True):
        quick.sort("Latency")
        texts = quick.column("Latency")
        known = [seconds(text) for text in texts if text != "-"]
        assert known == sorted(known, reverse=is_falling)
        assert len(known) > 20
        assert "-" not in texts[: len(known)]


def test_filters_and_the_search_narrow_the_table_and_the_charts(quick):
    quick.choose("Pass", "backward")
    assert set(quick.column("Pass")) == {"backward"}
    quick.wait("return document.querySelector('#charts .notice') !== null")
    quick.choose("Pass", "all")
    quick.choose("Implementation", "bsa@flex")
    assert set(quick.column("Implementation")) == {"bsa@flex"}
    quick.wait(
        "return [...document.querySelectorAll('#charts .legendtext')].every((t) => !/gather/.test(t.textContent))"
    )
    quick.js("[...document.querySelectorAll('#filters button')].at(-1).click()")
    search = "const box = document.querySelector('.dt-search input'); box.value = 'segmentation fault';"
    quick.js(f"{search} box.dispatchEvent(new Event('input', {{bubbles: true}}))")
    quick.wait("return document.querySelectorAll('#cases tbody tr').length === 1")
    assert quick.column("Status") == ["CRASHED"]


def test_a_row_opens_to_its_command_its_checks_and_all_its_samples_and_closes(driver, files):
    page = Page(driver, files["five"])
    button = "#cases td.open button"
    page.click(button)
    page.wait("return document.querySelector('.behind .plot .boxlayer') !== null")
    text = page.js("return document.querySelector('.behind').innerText")
    for part in ("Measure this case again", "bsa-bench run --suite made-up", "Budget", "Case digest", "process 5"):
        assert part in text
    points = page.js("return document.querySelectorAll('.behind .scatterlayer .trace .points path').length")
    assert points == 5 * 21
    assert page.js("return document.querySelector(arguments[0]).getAttribute('aria-expanded')", button) == "true"
    page.click(button)
    assert page.js("return document.querySelector('.behind')") is None
    page.check_quiet()


def test_the_charts_are_drawn_and_a_drag_zooms_into_one(quick):
    from selenium.webdriver import ActionChains

    titles = quick.js("return [...document.querySelectorAll('.chart h3')].map((h) => h.textContent)")
    expected = ["Speed-up against length", "Latency", "Peak memory", "Fidelity against speed", "Where the time goes"]
    assert titles == expected
    lines = quick.js("return document.querySelector('.plot').data.map((trace) => trace.name)")
    assert [name for name in lines if name.startswith("ideal")]
    span = "const a = document.querySelectorAll('.plot')[1]._fullLayout.xaxis.range; return a[1] - a[0]"
    before = quick.js(span)
    area = quick.js("return document.querySelectorAll('.plot')[1].querySelector('.nsewdrag')")
    quick.js("arguments[0].scrollIntoView({block: 'center'})", area)
    drag = ActionChains(quick.driver).move_to_element_with_offset(area, -150, -60)
    drag.click_and_hold().move_by_offset(200, 80).move_by_offset(50, 40).release().perform()
    quick.wait(f"const now = (() => {{ {span} }})(); return now < {before * 0.8}")


def test_the_theme_follows_the_system_until_it_is_chosen(quick):
    shade = "return getComputedStyle(document.body).backgroundColor"
    is_dark = "return document.documentElement.classList.contains('dark')"

    def system(name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        quick.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    system("light")
    light = quick.js(shade)
    system("dark")
    quick.wait(is_dark)
    assert quick.js(shade) != light
    text = "return document.querySelector('.plot .xtick text').style.fill"
    assert quick.js(text) == "rgb(232, 234, 237)"
    quick.click("button[data-theme=light]")
    assert quick.js(shade) == light
    assert quick.js("return document.querySelector('button[data-theme=light]').getAttribute('aria-pressed')") == "true"
    quick.click("button[data-theme=dark]")
    system("light")
    assert quick.js(is_dark)
    quick.click("button[data-theme=system]")
    quick.wait(is_dark.replace("return ", "return !"))


def test_it_prints_all_rows_on_white_and_is_as_before_afterwards(quick):
    quick.click("button[data-theme=dark]")
    quick.js(
        """window.addEventListener('beforeprint', () => { window.printed = [
          document.querySelectorAll('#cases tbody tr').length,
          document.documentElement.classList.contains('dark')]; })"""
    )
    shown = len(quick.column("Pass"))
    pdf = quick.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    assert base64.b64decode(pdf).startswith(b"%PDF")
    assert quick.js("return window.printed") == [len(made.quick_results()), False]
    quick.wait("return document.documentElement.classList.contains('dark')")
    assert len(quick.column("Pass")) == shown == 50
    quick.click("button[data-theme=system]")


def test_a_narrow_window_scrolls_the_table_and_not_the_page(quick):
    size = quick.driver.get_window_size()
    try:
        quick.driver.set_window_size(500, 900)
        quick.wait("return document.querySelector('.plot')._fullLayout.width < 500")
        assert quick.js("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        quick.driver.set_window_size(size["width"], size["height"])


def test_several_runs_have_a_column_and_a_selector(driver, files):
    page = Page(driver, files["pair"])
    assert set(page.column("Run")) <= {"made-up-run", "other"}
    page.choose("Run", "other")
    assert set(page.column("Run")) == {"other"}
    page.check_quiet()


def test_nothing_of_a_hostile_run_runs_or_becomes_an_element(driver, files):
    page = Page(driver, files["hostile"])
    number = page.js("return document.querySelectorAll('td.open button').length")
    assert number == 4
    page.js("document.querySelectorAll('td.open button').forEach((button) => button.click())")
    page.js("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    page.wait("return document.querySelectorAll('.behind').length === 4")
    strange = "img[src=x], iframe, object, main a[href], svg[onload], b b, [onmouseover], [onerror]"
    assert page.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.outerHTML)", strange) == []
    assert "<img src=x onerror=window.hit=1>" in page.js("return document.querySelector('h1').textContent")
    page.check_quiet()


def test_ten_thousand_rows_are_paged(driver, tmp_path):
    names = ("full@sdpa-flash", "full@sdpa-math", "bsa@gather", "bsa@flex", "bsa@triton")
    results = [made.measured(made.case(name, 64 * n)) for n in range(1, 2001) for name in names]
    page = Page(driver, page_of(tmp_path, run_of(tmp_path, made.renumber(results))))
    assert page.js("return document.querySelector('.dt-info').textContent") == "Showing 1 to 50 of 10,000 entries"
    assert page.js("return document.querySelectorAll('#cases tbody tr').length") == 50
    page.sort("Latency")
    known = [seconds(text) for text in page.column("Latency")]
    assert known == sorted(known)
    page.check_quiet()
