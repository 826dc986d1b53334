"""The page of `treadle watch` in a real browser, against the real server: what a person does, and what is shown.

The agent is made by hand, so that it is known what it does: at step 0 it stays where it is, later it brings the arm's
finger to the goal by the shortest way.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from treadle import registry
from treadle.algorithms.base import Algorithm
from treadle.cli import main
from treadle.registry import as_tree
from treadle.window.runs import Runs
from treadle.window.server import listen, make_server
from treadle.window.session import Options

CHROMIUM = os.environ.get("TREADLE_CHROMIUM", "/usr/bin/chromium")
if not os.environ.get("TREADLE_REQUIRE_BROWSER"):
    pytest.importorskip("playwright", reason="the browser tests need playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no browser at {CHROMIUM} (TREADLE_CHROMIUM names another)", allow_module_level=True)
sync_api = importlib.import_module("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=20_000)

pytestmark = pytest.mark.least_optimised

DT = 0.1
GOAL_GREEN = {"light": [0, 158, 115], "dark": [38, 180, 138]}
"""The colour "goal" of style.css."""


class SteerState(NamedTuple):
    """0 until the first update, then 1; and a number that differs from seed to seed."""

    gain: jax.Array
    mark: jax.Array


@as_tree
class Steer(Algorithm):
    """Solves ArmEasy by geometry, from what an agent observes of it."""

    actions = ("continuous",)

    def init(self, key, spec):
        return SteerState(jnp.zeros(()), jax.random.uniform(key))

    def act(self, state, carry, obs, key, *, explore=True):
        return state.gain * jax.vmap(self.turn)(obs), carry, ()

    def turn(self, obs):
        elbow, finger, goal = obs[1:3] - obs[5:7], obs[3:5] - obs[5:7], -obs[5:7]
        first, second = jnp.linalg.norm(elbow), jnp.linalg.norm(finger - elbow)
        angle = jnp.arctan2(elbow[1], elbow[0])
        bend = wrapped(jnp.arctan2(*(finger - elbow)[::-1]) - angle)
        # The law of cosines; of its two solutions that which bends as the arm does.
        cosine = (goal @ goal - first**2 - second**2) / (2 * first * second)
        wanted_bend = jnp.copysign(jnp.arccos(jnp.clip(cosine, -1, 1)), bend)
        aside = jnp.arctan2(second * jnp.sin(wanted_bend), first + second * jnp.cos(wanted_bend))
        wanted = jnp.stack([jnp.arctan2(goal[1], goal[0]) - aside, wanted_bend])
        return jnp.clip(wrapped(wanted - jnp.stack([angle, bend])) / DT, -1, 1)

    def update(self, state, rollout, key):
        return state._replace(gain=jnp.ones(())), {}

    def inspect(self, state, obs):
        return {"value": state.mark, "mean": state.gain * self.turn(obs)}


def wrapped(angle):
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


class Server:
    """The real one, in a thread. It can be stopped, and started again on its port."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.stops = folder, 0, 0
        self.start()

    def start(self) -> None:
        listening = listen("127.0.0.1", self.port)
        self.port = listening.getsockname()[1]
        # Each test finds a session of its own.
        self._server = make_server(Runs(self.folder), Options(linger_seconds=0.0), "127.0.0.1", self.port)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]})
        self._thread.start()

    def stop(self) -> None:
        self.stops += 1
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("runs")
    registry.algorithms.register("steer")(Steer)
    flags = ["--total-timesteps", "40", "--seeds", "2"]
    assert main(["train", "steer", "ArmEasy", "--out", str(folder / "arm"), *flags]) == 0
    flags = ["--total-timesteps", "2000", "--preset", "none"]
    assert main(["train", "q-learning", "Maze", "--out", str(folder / "maze"), *flags]) == 0
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text("{")
    made = Server(folder)
    yield made
    made.stop()
    del registry.algorithms._entries["steer"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Pictures are compared, and after a few were read the browser would no longer draw them by the graphics card.
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


Open = Callable[..., Any]
SOCKETS: dict[Any, Any] = {}
"""The last of each page that a test has opened."""


@pytest.fixture
def opened(server: Server, browser: Any) -> Iterator[Open]:
    """Opens a page, of the arm unless told otherwise. What a page reports as an error fails the test."""
    errors: list[str] = []
    stops = server.stops

    def open_page(path: str = "/run/arm", **settings: Any) -> Any:
        context = closing.enter_context(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings}))
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("websocket", lambda socket: SOCKETS.update({page: socket}))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        if path.startswith("/run/"):
            expect(page.locator("#t")).to_have_text(re.compile(r"\d"), timeout=60_000)
        return page

    with contextlib.ExitStack() as closing:
        yield open_page
    SOCKETS.clear()
    if server.stops > stops:  # the browser itself reports a server that is away, or went while it was asked
        errors = [
            error for error in errors if not re.search("ERR_(CONNECTION_|EMPTY_RESPONSE)|WebSocket connection", error)
        ]
    assert errors == []


def number(page: Any, name: str) -> int:
    return int(page.locator(name).inner_text().replace(",", ""))


def pause(page: Any) -> int:
    """The step at which it stopped. The button changes at once; frames may be under way until the server answers."""

    def answers(text: str) -> bool:
        message = json.loads(text)
        return message["type"] == "frame" and not message["control"]["playing"]

    with SOCKETS[page].expect_event("framereceived", answers) as answered:
        page.locator("#play").click()
    expect(page.locator("#play-label")).to_have_text("Play")
    step = json.loads(answered.value)["step"]
    expect(page.locator("#t")).to_have_text(str(step))
    return step


def advances(page: Any) -> None:
    expect(page.locator("#t")).not_to_have_text(page.locator("#t").inner_text())


def middle(element: Any) -> tuple[float, float]:
    box = element.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Any, right: float, down: float) -> tuple[float, float]:
    """Move the goal by so many pixels; where it is to be then."""
    x, y = middle(page.locator(".handle"))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right / 2, y + down / 2)
    page.mouse.move(x + right, y + down)
    page.mouse.up()
    return x + right, y + down


def comes_to(page: Any, x: float, y: float) -> None:
    handle = page.locator(".handle")
    for _ in range(1000):
        if max(abs(a - b) for a, b in zip(middle(handle), (x, y), strict=True)) < 2:
            return
        page.wait_for_timeout(20)
    assert middle(handle) == pytest.approx((x, y), abs=2)


def colour_at_goal(page: Any) -> list[int]:
    """Of the picture, a little beside the goal's middle, where the finger may be."""
    return page.evaluate("""() => {
        const [canvas, goal] = [document.getElementById("canvas"), document.querySelector(".handle")];
        const density = canvas.width / canvas.clientWidth;
        const at = (offset) => Math.round(offset * density);
        const aside = goal.clientWidth / 5;
        const place = [at(goal.offsetLeft + aside), at(goal.offsetTop + aside), 1, 1];
        return [...canvas.getContext("2d").getImageData(...place).data].slice(0, 3);
    }""")


def test_a_run_plays_pauses_and_takes_single_steps(opened):
    page = opened()
    assert page.title() == "arm – Treadle"
    expect(page.locator("#run-what")).to_have_text("steer in ArmEasy · 2 seeds")
    advances(page)
    step = pause(page)
    page.wait_for_timeout(300)
    assert number(page, "#t") == step
    page.locator("#step").click()
    expect(page.locator("#t")).to_have_text(str(step + 1))
    page.keyboard.press(".")
    expect(page.locator("#t")).to_have_text(str(step + 2))
    page.locator("#episode-title").click()  # away from the button, which a space would press
    page.keyboard.press("Space")
    expect(page.locator("#play-label")).to_have_text("Pause")
    advances(page)
    page.keyboard.press("r")
    expect(page.locator("#start")).to_have_value("1")
    expect(page.locator("#episode")).to_have_text("2")


def test_the_goal_is_dragged_by_the_mouse_and_moved_by_keys(opened):
    page = opened()
    pause(page)
    comes_to(page, *drag(page, -60, 90))
    assert colour_at_goal(page) == GOAL_GREEN["light"]
    handle, width = page.get_by_label("goal: drag, or move by the arrow keys"), page.locator("#canvas").bounding_box()
    x, y = middle(handle)
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    comes_to(page, x + 0.02 * width["width"], y - 0.005 * width["height"])
    expect(page.locator("#person")).to_be_hidden()  # the arrows moved the goal, and nothing else
    page.get_by_label("the goal follows the pointer").check()
    page.mouse.move(x + 40, y + 10)
    comes_to(page, x + 40, y + 10)


def test_the_finger_arrives_wherever_the_goal_is_put(opened):
    page = opened()
    drag(page, -40, 60)
    page.locator("#speed").select_option("8")
    expect(page.locator("#marks .yes.helped")).to_have_count(1)
    # What the agent reaches by itself is counted apart.
    expect(page.locator("#share")).to_have_text(re.compile(r"^reached in (\d+) of \1 episodes without help$"))
    page.locator("#play").focus()
    page.keyboard.press("-")
    expect(page.locator("#speed")).to_have_value("4")


def test_checkpoints_and_seeds_are_chosen(opened):
    page = opened()
    choice, action, value = page.locator("#checkpoint"), page.locator("#bars .number").first, page.locator("#value")
    assert choice.locator("option").all_inner_texts() == ["step 40", "step 0"]
    choice.select_option("0")
    expect(action).to_have_text("0.000")  # before its first update it does not move
    choice.select_option("40")
    page.locator("#reset").click()
    expect(action).not_to_have_text(re.compile("^(0.000|–)$"))
    first = value.inner_text()
    page.locator("#seed").select_option("1")
    expect(value).not_to_have_text(first)
    expect(page.locator("#legend")).to_contain_text("seed 1")


def test_a_start_is_had_again_by_its_number_and_typing_steers_nothing(opened):
    page = opened()
    pause(page)
    pictures = []
    for start in ("7", "8", "7"):
        episode = number(page, "#episode")
        page.locator("#start").fill(start)
        page.keyboard.press("Enter")
        expect(page.locator("#episode")).to_have_text(str(episode + 1))
        pictures.append(page.evaluate("document.getElementById('canvas').toDataURL()"))
    assert pictures[0] == pictures[2] != pictures[1]
    episode = number(page, "#episode")
    page.keyboard.press("r")
    page.keyboard.press(".")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(150)
    assert (number(page, "#episode"), number(page, "#t")) == (episode, 0)


def test_a_start_that_there_is_not_becomes_the_nearest_and_each_change_is_sent_once(opened):
    page = opened()
    pause(page)
    field = page.locator("#start")
    for given, taken in (("-3", "0"), ("1.5", "1"), ("1e99", "2147483647"), ("5", "5")):
        episode = number(page, "#episode")
        field.fill(given)
        page.keyboard.press("Enter")
        expect(field).to_have_value(taken)
        page.locator("#episode-title").click()  # leaving the field is no change
        expect(page.locator("#episode")).to_have_text(str(episode + 1))
        page.wait_for_timeout(100)
        assert (number(page, "#episode"), field.input_value()) == (episode + 1, taken)
    field.fill("")
    page.keyboard.press("Enter")
    expect(field).to_have_value("5")
    assert number(page, "#episode") == episode + 1


def test_arrow_keys_steer_while_they_are_held(opened):
    page = opened()
    page.keyboard.down("ArrowUp")
    expect(page.locator("#person")).to_be_visible()
    expect(page.locator("#bars .number").last).to_have_text("1.000")
    page.evaluate("window.dispatchEvent(new Event('blur'))")  # the key may come up elsewhere
    expect(page.locator("#person")).to_be_hidden()
    pause(page)
    page.keyboard.up("ArrowUp")
    page.keyboard.down("ArrowUp")
    expect(page.locator("#person")).to_be_visible()
    page.keyboard.up("ArrowUp")
    expect(page.locator("#person")).to_be_hidden()  # no frame says so
    page.locator(".help summary").click()
    assert page.locator("#help-keys").inner_text().split("\n") == [
        *("←", "joint 1 +", "→", "joint 1 -", "↑", "joint 2 +", "↓", "joint 2 -")
    ]


def test_the_page_outlives_its_server(opened, server):
    page = opened()
    page.locator("#seed").select_option("1")
    page.locator("#speed").select_option("2")
    advances(page)
    value = page.locator("#value").inner_text()
    server.stop()
    expect(page.locator("#lost")).to_be_visible()
    expect(page.locator("#controls")).to_have_attribute("inert", "")
    server.start()
    expect(page.locator("#lost")).to_be_hidden()
    advances(page)
    expect(page.locator("#controls")).not_to_have_attribute("inert", "")
    expect(page.locator(".notice")).to_have_count(0)  # that the run is being loaded is said in the scene's place
    expect(page.locator("#seed")).to_have_value("1")
    expect(page.locator("#speed")).to_have_value("2")
    expect(page.locator("#value")).to_have_text(value)


def test_another_run_on_the_same_port_is_told_and_led_to(opened, server):
    page, folder = opened(), server.folder
    server.stop()
    server.folder = folder / "maze"
    server.start()
    expect(page.locator("#lost")).to_contain_text("This server now shows other runs.")
    page.locator("#lost-home").click()
    expect(page.locator("#run-what")).to_have_text("q-learning in Maze")
    server.stop()
    server.folder = folder
    server.start()


def test_on_a_phone_nothing_is_too_wide_and_fingers_steer(opened):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page = opened(**phone, reduced_motion="reduce")
    step = pause(page)
    page.get_by_label("steer: joint 1 +").tap()
    expect(page.locator("#t")).to_have_text(str(step + 1))
    expect(page.locator("#bars .number").first).to_have_text("1.000")
    page.evaluate("scrollTo(0, 0)")
    x, y = middle(page.locator(".handle"))
    touch = page.context.new_cdp_session(page)
    for kind, points in (("Start", [(x, y)]), ("Move", [(x - 15, y)]), ("Move", [(x - 30, y + 20)]), ("End", [])):
        where = [{"x": right, "y": down} for right, down in points]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": where})
    comes_to(page, x - 30, y + 20)
    assert page.evaluate("scrollY") == 0
    for path in ("/run/arm", "/"):
        page.goto(page.url.split("/run")[0] + path)
        expect(page.locator(".run" if path == "/" else "#t")).not_to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_light_and_dark(opened):
    page = opened(color_scheme="dark")
    pause(page)
    assert colour_at_goal(page) == GOAL_GREEN["dark"]
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_text("theme: light")
    assert colour_at_goal(page) == GOAL_GREEN["light"]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 246, 248)"
    page.reload()
    expect(page.locator("#theme")).to_have_text("theme: light")


def test_the_values_of_a_table_lie_on_its_grid(opened):
    page = opened("/run/maze")
    pause(page)
    toggle = page.get_by_label("values of the table")
    picture = "document.getElementById('canvas').toDataURL()"
    with_values = page.evaluate(picture)
    toggle.uncheck()
    assert page.evaluate(picture) != with_values
    toggle.check()
    assert page.evaluate(picture) == with_values
    expect(page.locator("#bars .row")).to_have_count(4)
    expect(page.locator("#bars .row.chosen")).not_to_have_count(0)


def test_at_the_fastest_whole_episodes_are_drawn(opened):
    page = opened("/run/maze")
    caption = page.locator(".spark figcaption").first
    expect(caption).to_have_text("return so far")
    page.locator("#speed").select_option("max")
    expect(caption).to_have_text("return of each episode")
    page.locator("#speed").select_option("1")
    expect(caption).to_have_text("return so far")


def test_a_target_follows_the_pointer_in_each_of_its_views(opened):
    page = opened("/")
    sent = page.evaluate("""async () => {
        const { Handles } = await import("/page/hands.js");
        const [stage, option] = [document.createElement("div"), document.createElement("label")];
        stage.style.cssText = "position: fixed; top: 0; left: 0; width: 500px; height: 200px";
        option.innerHTML = '<input type="checkbox" checked><span></span>';
        document.body.append(stage);
        const sent = [];
        const hint = document.createElement("span");
        const handles = new Handles({ stage, picture: stage }, (message) => sent.push(message), option, hint);
        const ground = (left, right) => ["polygon", "ground", [left, 0, left, 2, right, 2, right, 0]];
        const shapes = [ground(0, 2), ground(3, 5)];
        const views = [["pillar 1", 1.8, 1.8, 0.1], ["target", 1, 1, 0.2], ["target (side)", 4, 1, 0.2]];
        handles.show({ low: [0, 0], high: [5, 2], shapes, handles: views });
        for (const clientX of [50, 250, 350]) {
            stage.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: 100 }));
            await new Promise(requestAnimationFrame);
        }
        return [hint.textContent, ...sent.map(({ handle, x, y }) => [handle, x, y])];
    }""")
    assert sent == ["drag any pillar or the target", ["target", 0.5, 1], ["target (side)", 3.5, 1]]


def test_the_list_leads_to_the_runs_and_tells_what_is_wrong(opened):
    page = opened("/")
    expect(page.locator(".run")).to_have_count(3)
    expect(page.locator(".run.broken")).to_contain_text("run.json is damaged")
    expect(page.locator(".run", has_text="maze").locator(".run-score")).to_contain_text("return at the end")
    page.get_by_role("link", name="maze").click()
    expect(page.locator("#run-what")).to_have_text("q-learning in Maze")
    page.locator("#home").click()
    expect(page.locator(".run")).to_have_count(3)


def test_a_connection_is_back_with_the_first_word_and_not_sought_where_there_is_no_run(opened):
    page = opened("/")
    found = page.evaluate("""async () => {
        const { Connection } = await import("/page/connection.js");
        const told = { maze: [], nothing: [] };
        for (const [name, events] of Object.entries(told))
            new Connection(`/ws/${name}`, () => events.push("message"), (connected) => events.push(connected));
        await new Promise((resolve) => setTimeout(resolve, 1500));
        return [told.maze.slice(0, 2), told.nothing];
    }""")
    assert found == [[True, "message"], [False]]


def test_where_actions_were_made_discrete_a_persons_are_shown_as_numbers(opened):
    page = opened("/run/maze")
    pause(page)
    # Read at once: what the server says next is shown in the same place.
    shown = page.evaluate("""async () => {
        const { Bars } = await import("/page/panel.js");
        const bars = new Bars(document.getElementById("bars"), { kind: "discrete", names: ["left", "right"] });
        bars.show({ action: [-1.5, 0.25], insight: {} });
        return document.getElementById("action").textContent;
    }""")
    assert shown == "−1.500, 0.250"


def test_the_curves_of_an_endless_episode_stay_short(opened):
    page = opened()
    length, last = page.evaluate("""async () => {
        const { EpisodeCurves } = await import("/page/charts.js");
        const curves = new EpisodeCurves(document.createElement("div"), document.createElement("div"));
        for (let step = 0; step < 10_000; step++) curves.add({ episode: 1, step, reward: 1, return: step });
        return [curves.t.length, curves.returns.at(-1)];
    }""")
    assert 500 <= length <= 1000 and last == 9999
