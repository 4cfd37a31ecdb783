"""Templates that want time, memory or the machine end in a ChatTemplateError, and the next render
is served.
"""

import os
import signal
import time

import psutil
import pytest

from rocmforge_jax.text import ChatTemplate, ChatTemplateError

HI = [{"role": "user", "content": "hi"}]
NEST = (
    "{% set ns = namespace(x=[0]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{%"
    " endfor %}"
)
DOUBLE = (
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = EXPRESSION %}{% endfor"
    " %}{{ ns.x | length }}"
)


def refused(template, error, limit=2.0):
    start = time.perf_counter()
    with pytest.raises(ChatTemplateError, match=error):
        ChatTemplate(template, time_limit=limit).render(HI)
    # Starting a process takes time on a busy machine.
    assert time.perf_counter() - start < limit + 20
    assert ChatTemplate("{{ messages[0].content }}").render(HI) == "hi"


@pytest.mark.core
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 9) }}",
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{"
            " f(60) }}"
        ),
        NEST + "{{ ns.x == [1] }}{{ ns.x }}",
        NEST + "{{ ns.x | tojson }}",
        "{{ raise_exception('no' * 10 ** 8) }}",
    ],
)
def test_endless_work_is_stopped(template):
    refused(template, r"the template did not finish within 0.4 s|needs more than \d+ MB", limit=0.4)


@pytest.mark.core
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ '\\t'.expandtabs(2 ** 31 - 1) }}",
        "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
        "{{ ('b' * 99999).join('a' * 99999) }}",
        "{{ 'a' | indent(10 ** 10) }}",
        "{{ [1] | batch(10 ** 10, 0) | list }}",
        "{{ [1] | tojson(indent=10 ** 10) }}",
        DOUBLE.replace("EXPRESSION", "ns.x ~ ns.x"),
        DOUBLE.replace("EXPRESSION", "ns.x + ns.x"),
        DOUBLE.replace("EXPRESSION", "ns.x.replace('a', ns.x)"),
        DOUBLE.replace(
            "{% set ns.x = EXPRESSION %}", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"
        ),
    ],
)
def test_great_memory_is_refused(template):
    # The limit leaves time to take the memory on a busy machine.
    refused(template, "the template needs more than 512 MB of memory", limit=60.0)


@pytest.mark.core
@pytest.mark.parametrize(
    "template, error",
    [
        (
            "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
            "wrote more than 16777216 characters",
        ),
        ("{{ messages[0].role * 5_000_000 }}", "wrote more than 16777216 characters"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "calls itself too deeply"),
        ("{{ " + "-" * 100_000 + "1 }}", "calls itself too deeply"),
        ("{{ raise_exception('no' * 10 ** 6) }}", "the template refuses these messages: nono"),
    ],
)
def test_great_output_and_depth_are_refused(template, error):
    refused(template, error)


@pytest.mark.core
@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "().__class__.__base__.__subclasses__()",
        "messages.__class__.__init__.__globals__",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "lipsum.__globals__['os'].popen('id').read()",
        "joiner.__init__.__globals__",
        "namespace.__init__.__globals__",
        "raise_exception.__globals__['sys']",
        "strftime_now.__code__.co_code",
        "self.__init__.__globals__",
        "self._TemplateReference__context.environment",
        "'{0.__class__.__mro__}'.format(messages)",
        "messages.append(1)",
        "messages.pop()",
        "(messages | list).append.__self__.x",
        "messages[0].update(role='system')",
        "messages[0].pop('role')",
        "request.application.__globals__",
        "config.items()",
        "get_flashed_messages.__globals__",
        "(messages | attr('__class__')).x",
        "(messages | map(attribute='__class__') | list)[0].x",
        "open('/etc/passwd').read()",
    ],
)
def test_the_interpreter_is_out_of_reach(expression):
    with pytest.raises(ChatTemplateError, match="does what is not allowed|uses what is not there"):
        ChatTemplate("{{ " + expression + " }}").render(HI)


@pytest.mark.core
def test_a_template_has_a_greatest_length():
    assert ChatTemplate("x" * 2**20).render(HI) == "x" * 2**20
    with pytest.raises(
        ChatTemplateError, match="the chat template has 1048577 characters, the limit is 1048576"
    ):
        ChatTemplate("x" * (2**20 + 1))


def renderers():
    return [
        child
        for child in psutil.Process().children()
        if "render_worker.py" in " ".join(child.cmdline())
    ]


def test_one_process_serves_all_renders():
    for i in range(3):
        assert ChatTemplate(f"{{{{ {i} }}}}").render(HI) == str(i)
    assert len(renderers()) == 1


def test_a_process_that_was_killed_is_replaced():
    ChatTemplate("x").render(HI)
    (child,) = renderers()
    os.kill(child.pid, signal.SIGKILL)
    psutil.wait_procs([child], timeout=10)
    assert ChatTemplate("y").render(HI) == "y"


@pytest.fixture
def interrupt_soon():
    """Ctrl-C in 0.3 s, also where the tests were begun in the background of a shell, which ignores
    it.
    """
    handlers = {
        signal.SIGALRM: lambda *_: signal.raise_signal(signal.SIGINT),
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interrupt_leaves_the_next_render_right(interrupt_soon):
    """The answer to the old question is never taken for that to the new one."""
    with pytest.raises(KeyboardInterrupt):
        ChatTemplate(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            time_limit=60,
        ).render(HI)
    assert ChatTemplate("right").render(HI) == "right"


def test_a_render_takes_milliseconds():
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    template.render(HI)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        template.render(HI * 20)
        times.append(time.perf_counter() - start)
    assert sorted(times)[25] < 0.01  # 0.3 ms on a quiet machine
