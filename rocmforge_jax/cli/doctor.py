"""The command `doctor`."""

import dataclasses

from rocmforge_jax.cli import common
from rocmforge_jax.cli.machine import gather
from rocmforge_jax.cli.problems import problems

NAME = "doctor"
HELP = (
    "Show versions, devices, what each operation runs on, and problems with remedies. The exit code"
    " is 1 if a problem was found."
)


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options) -> int:
    """Prints the report and returns the exit code: 1 for problems of this machine."""
    facts = gather()
    found = list(problems(facts))
    report = {
        "versions": facts.versions,
        "devices": facts.devices,
        "environment": facts.environment,
        "operations": facts.operations,
        "problems": [dataclasses.asdict(problem) for problem in found],
    }
    if options.json:
        common.print_json(report)
    else:
        _print(facts, report, found)
    return int(any(problem.certain for problem in found))


def _print(facts, report: dict, found: list):
    for title in ("versions", "operations", "environment"):
        if not report[title]:
            continue
        print(f"{title}:")
        for name, value in report[title].items():
            print(f"  {name:<18} {value or '(empty)'}")
    print("devices:")
    for device in facts.devices:
        memory = (
            f", {device['memory_bytes'] / 2**30:.1f} GiB free" if device["memory_bytes"] else ""
        )
        print(f"  {device['platform']:<18} {device['kind']}{memory}")
    print("problems:" if found else "problems: none known")
    for problem in found:
        print(
            f"  {'' if problem.certain else 'known of such machines: '}{problem.what}\n    ->"
            f" {problem.remedy}"
        )
