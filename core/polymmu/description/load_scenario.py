"""Reading scenario files: from a name or a path to a checked ``Scenario`` and what it wants of the machine.

``machine`` and ``kernel`` stay a tree of YAML nodes, laid over whatever machine runs the scenario: only there can they
be checked, and then a mistake is told where this file wrote it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import attrs

from polymmu.description.convert import convert
from polymmu.description.installed import SUFFIX, scenario_files
from polymmu.description.load import is_path, read_text
from polymmu.description.mistakes import Place, Problems, unknown
from polymmu.description.overlay import merge
from polymmu.description.scenario import MEMORY_MODELS, Scenario
from polymmu.description.yaml_source import MAX_BYTES, Mapping, Scalar, parse_yaml
from polymmu.errors import UserMistake

__all__ = [
    "InstalledScenario",
    "ScenarioFile",
    "has_scenario",
    "installed_scenarios",
    "is_scenario",
    "load_scenario",
    "load_scenario_text",
]


@attrs.frozen(eq=False)
class ScenarioFile:
    """A scenario, where it came from, and what to lay over the machine that runs it."""

    scenario: Scenario
    filename: str
    sha256: str
    over: Mapping
    variants: Mapping
    """What each variant lays over the machine, too."""
    memory_models: dict[str, str] = attrs.field(factory=dict[str, str])
    """Of variants that choose their own."""

    def memory_model_in(self, variant: str | None) -> str:
        """What CPUs see of each other's stores, in ``variant``."""
        return self.memory_models.get(variant or FIXED, self.scenario.memory_model)

    def over_in(self, variant: str | None) -> Mapping:
        """What to lay over the machine in ``variant``; None: ``fixed`` where there are variants. Raises UserMistake."""
        names = [*self.variants.items]
        if variant is None:
            variant = FIXED if FIXED in names else None
        if variant is None:
            return self.over
        if variant not in names:
            known = f"known: {', '.join(names)}" if names else "it has no variants"
            raise UserMistake(f"no variant '{variant}' ({known})", place=self.filename)
        wishes = self.variants.items[variant][1]
        assert isinstance(wishes, Mapping)
        return merge(self.over, wishes, Problems())


FIXED = "fixed"
MODEL_KEY = "memory_model"
_SCENARIO = re.compile(rb"^scenario\s*:", re.MULTILINE)


def has_scenario(head: bytes) -> bool:
    """Whether a file that begins so is a scenario."""
    return _SCENARIO.search(head) is not None and b"\0" not in head


def is_scenario(name_or_path: str) -> bool:
    """Whether that is a scenario: a file that says so, or an installed one's name and no machine's."""
    path = Path(name_or_path)
    if path.is_file():
        with path.open("rb") as file:
            return has_scenario(file.read(MAX_BYTES))
    return not is_path(name_or_path) and name_or_path in scenario_files()


def load_scenario(name_or_path: str) -> ScenarioFile:
    """The scenario of an installed name or of a YAML file. Raises ``UserMistake``, as ``load_machine`` does."""
    if is_path(name_or_path) or Path(name_or_path).is_file():
        path = Path(name_or_path)
    else:
        installed = scenario_files()
        if name_or_path not in installed:
            raise UserMistake(
                f"{unknown('scenario', name_or_path, installed)}; a file's path ends with {SUFFIX}"
            )
        path = installed[name_or_path].path
    return load_scenario_text(read_text(path, str(path)), filename=str(path))


def load_scenario_text(text: str, *, filename: str) -> ScenarioFile:
    """As ``load_scenario``, from text; ``filename`` is for messages."""
    problems = Problems()
    tree = parse_yaml(text, filename, problems)
    if not isinstance(tree, Mapping):
        place = Place(filename, 1, 1) if tree is None else tree.place
        problems.fail(place, "a scenario file is a mapping: lines of 'key: value'")
    items = dict(tree.items)
    over = Mapping(tree.place, {})
    if "machine" in items:
        wishes = items.pop("machine")[1]
        if isinstance(wishes, Mapping):
            over = wishes
        else:
            problems.add(
                wishes.place, "machine: expected a mapping to lay over the machine, such as {cpus: 2}"
            )
    if "kernel" in items:
        over = Mapping(over.place, {**over.items, "kernel": items.pop("kernel")})
    variants = Mapping(tree.place, {})
    if "variants" in items:
        node = items.pop("variants")[1]
        if isinstance(node, Mapping) and all(isinstance(each, Mapping) for _, each in node.items.values()):
            variants = node
        else:
            problems.add(
                node.place,
                "variants: expected mappings to lay over the machine, such as buggy: {kernel: {...}}",
            )
    models = {}
    for name, (place, node) in variants.items.items():
        assert isinstance(node, Mapping)
        chosen = node.items.get(MODEL_KEY)
        if chosen is None:
            continue
        rest = {key: value for key, value in node.items.items() if key != MODEL_KEY}
        variants = Mapping(variants.place, {**variants.items, name: (place, Mapping(node.place, rest))})
        if isinstance(chosen[1], Scalar) and chosen[1].text in MEMORY_MODELS:
            models[name] = chosen[1].text
        else:
            problems.add(chosen[1].place, f"variants.{name}.{MODEL_KEY}: one of {', '.join(MEMORY_MODELS)}")
    scenario = convert(Scenario, Mapping(tree.place, items), problems)
    problems.finish()
    assert scenario is not None  # or there would have been a problem
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return ScenarioFile(scenario, filename, sha256, over, variants, models)


@attrs.frozen
class InstalledScenario:
    """One line of ``polymmu scenarios``. ``summary`` is the reason if the file cannot be read."""

    name: str
    summary: str
    distribution: str
    version: str
    corpus: str = ""
    invariant: str = ""
    arches: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


def installed_scenarios() -> list[InstalledScenario]:
    """Every installed scenario by name."""
    return [
        _line(name, str(file.path), file.distribution, file.version)
        for name, file in scenario_files().items()
    ]


def _line(name: str, filename: str, distribution: str, version: str) -> InstalledScenario:
    try:
        file = load_scenario(filename)
    except UserMistake as error:
        return InstalledScenario(name, str(error).partition("\n")[0], distribution, version)
    scenario = file.scenario
    return InstalledScenario(
        name,
        scenario.summary,
        distribution,
        version,
        scenario.corpus,
        scenario.invariant,
        scenario.arches,
        tuple(file.variants.items),
    )
