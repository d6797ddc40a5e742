"""Airflow's pages in Chromium, as a person sees and clicks them."""

import base64
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from mlctl.base.packages import ensure_packages
from mlctl.clients.airflow import Airflow

BROWSERS = ("chromium", "google-chrome")
SIZE = {"width": 1280, "height": 800}
"""Of the window and so of its pictures, in pixels."""

PATIENCE_SECONDS = 120
"""What a page is to show comes within so long, also on a busy machine."""

DIFFERENCE = """async (pictures) => {
  const [width, height] = [64, 40];
  const greys = [];
  for (const picture of pictures) {
    const image = new Image();
    image.src = `data:image/png;base64,${picture}`;
    await image.decode();
    const canvas = new OffscreenCanvas(width, height).getContext("2d");
    canvas.drawImage(image, 0, 0, width, height);
    const { data } = canvas.getImageData(0, 0, width, height);
    greys.push(Array.from({ length: width * height }, (_, i) =>
      (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 765));
  }
  const sum = (of) => greys[0].reduce((sum, grey, i) => sum + of(grey, greys[1][i]), 0);
  return sum((one, other) => Math.abs(one - other)) / sum((one, other) => 2 - one - other);
}"""


@contextmanager
def chromium(elsewhere: Mapping[str, str]) -> Iterator[Browser]:
    """Yield a browser without a window.

    `elsewhere`: hosts with their ports, and where they are in truth.
    """
    if not any(map(shutil.which, BROWSERS)):
        ensure_packages("the tests of the pages", ["chromium"])
    program = next(filter(None, map(shutil.which, BROWSERS)))
    rules = ", ".join(f"MAP {host} {place}" for host, place in elsewhere.items())
    # Without a sandbox: the tests run as root.
    options = ["--no-sandbox", f"--host-resolver-rules={rules}"]
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


def new_page(browser: Browser, url: str) -> Page:
    """Return an empty page of a person who has not been here before."""
    page = browser.new_context(viewport=SIZE, base_url=url).new_page()
    page.set_default_timeout(PATIENCE_SECONDS * 1000)
    return page


def difference(page: Page, one: Path, other: Path) -> float:
    """Return how different two pictures of white pages are, 0 (alike) to 1 (one of them is empty).

    Seen from afar: it is the part of the ink in thumbnails that is not in both.
    """
    pictures = [base64.b64encode(file.read_bytes()).decode() for file in (one, other)]
    return page.evaluate(DIFFERENCE, pictures)


class Pages(ABC):
    """Knows where things are on Airflow's pages; those of 2.9 and of 3 are two programs."""

    def __init__(self, page: Page, airflow: Airflow) -> None:
        self.page, self.airflow = page, airflow

    @abstractmethod
    def log_in(self) -> None:
        """Fill in name and password, and see the first page."""

    def _send_login(self, path: str) -> None:
        """Fill in and send the form that one gets at a path."""
        self.page.goto(path)
        self.page.fill("[name=username]", self.airflow.user)
        self.page.fill("[name=password]", self.airflow.password)
        self.page.click("[type=submit]")

    @abstractmethod
    def list_dags(self) -> Locator:
        """Open the list of DAGs; return what tells of import errors on it."""

    def dag(self, dag_id: str) -> Locator:
        """Return a DAG in that list."""
        return self.page.get_by_role("link", name=dag_id, exact=True)

    @abstractmethod
    def open_form(self, dag_id: str) -> None:
        """Open the form in which a run is started."""

    def field(self, parameter: str) -> Locator:
        """Return the field of a parameter in that form."""
        return self.page.locator(f"[name=element_{parameter}]")

    @abstractmethod
    def send_form(self) -> None:
        """Ask for the run."""

    @abstractmethod
    def refusal(self, parameter: str) -> Locator:
        """Return what tells that the form was refused, for a parameter where the page says that."""

    @abstractmethod
    def open_run(self, dag_id: str, run_id: str, task_id: str = "", tab: str = "") -> None:
        """Open a run, or one of its tasks: `tab` is "logs", or "" for its details."""

    @abstractmethod
    def note(self, text: str) -> Locator:
        """Return the note of the run that is shown, which has this text."""

    @abstractmethod
    def status(self, state: str) -> Locator:
        """Return what says that the run or the task which is shown is in this state."""

    def link(self, name: str) -> Locator:
        """Return one of the links of the task that is shown."""
        return self.page.get_by_role("link", name=name)

    @abstractmethod
    def approve(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Answer yes for the task that waits for a person."""


class Pages2(Pages):
    """Airflow 2.9."""

    def log_in(self) -> None:
        self._send_login("/login/")
        self.page.wait_for_url("**/home")

    def list_dags(self) -> Locator:
        self.page.goto("/home")
        return self.page.get_by_text("DAG Import Errors")

    def open_form(self, dag_id: str) -> None:
        self.page.goto(f"/dags/{dag_id}/trigger")

    def send_form(self) -> None:
        self.page.get_by_role("button", name="Trigger", exact=True).click()

    def refusal(self, parameter: str) -> Locator:
        return self.page.locator(".alert", has_text="Invalid input").filter(has_text=parameter)

    def open_run(self, dag_id: str, run_id: str, task_id: str = "", tab: str = "") -> None:
        # Beside it no other runs, of which there are more each time.
        alone = {"num_runs": 1, "base_date": self.airflow.run(dag_id, run_id)["execution_date"]}
        words = {"dag_run_id": run_id, "task_id": task_id, "tab": tab, **alone}
        query = urlencode({name: word for name, word in words.items() if word}, quote_via=quote)
        self.page.goto(f"/dags/{dag_id}/grid?{query}")

    def status(self, state: str) -> Locator:
        return self.page.get_by_role("row", name=f"Status {state}")

    def note(self, text: str) -> Locator:
        return self.page.get_by_text(text)

    def approve(self, dag_id: str, run_id: str, task_id: str) -> None:
        self.open_run(dag_id, run_id, task_id)
        self.page.get_by_text("Mark state as").click()
        self.page.get_by_role("menuitem", name="success").click()
        self.page.get_by_role("button", name="Mark as success").click()


class Pages3(Pages):
    """Airflow 3."""

    def log_in(self) -> None:
        self._send_login("/")
        expect(self.page.get_by_text("Active Dags")).to_be_visible()

    def list_dags(self) -> Locator:
        self.page.goto("/dags")
        return self.page.get_by_text("Dag Import Error")

    def open_form(self, dag_id: str) -> None:
        self.page.goto(f"/dags/{dag_id}")
        self.page.get_by_test_id("trigger-dag-button").click()

    def send_form(self) -> None:
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Trigger", exact=True).click()

    def refusal(self, parameter: str) -> Locator:
        # "Bad Request", whatever it is.
        return self.page.get_by_text("Failed to Trigger Dag").first

    def open_run(self, dag_id: str, run_id: str, task_id: str = "", tab: str = "") -> None:
        task = f"/tasks/{task_id}" if task_id else ""
        # The log is what a task's page begins with.
        tab = "" if tab == "logs" else "/details"
        self.page.goto(f"/dags/{dag_id}/runs/{quote(run_id)}{task}{tab}")

    def status(self, state: str) -> Locator:
        return self.page.get_by_test_id("state-badge").get_by_text(state.title())

    def note(self, text: str) -> Locator:
        # The page itself has its beginning only.
        whole = self.page.get_by_role("dialog")
        if not whole.count():
            self.page.get_by_label("Edit note").click()
        return whole.get_by_text(text)

    def approve(self, dag_id: str, run_id: str, task_id: str) -> None:
        self.page.goto(f"/dags/{dag_id}/runs/{quote(run_id)}/tasks/{task_id}/required_actions")
        self.page.get_by_role("button", name="Approve").click()
