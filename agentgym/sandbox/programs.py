"""The persistent programs of a sandbox: a shell and a Python that keep their state from one text to the next.

Owns what runs inside. A program reads texts that end in NUL from descriptor 9, and writes the status of each, NUL at
its end, to descriptor 8; standard output and error are the command's own, standard input is empty."""

from __future__ import annotations

_BASH = r"""
while IFS= read -r -u 9 -d "" AGENTGYM_TEXT; do
  eval "$AGENTGYM_TEXT" </dev/null 8>&- 9<&-
  printf '%d\0' "$?" >&8
done
"""

_PYTHON = r"""
def _main():
    import ast, linecache, os, sys, traceback
    asked, told = os.fdopen(9, "rb"), 8
    os.set_inheritable(9, False), os.set_inheritable(8, False)
    space, rest, count = {"__name__": "__main__", "__builtins__": __builtins__}, b"", 0
    sys.path.insert(0, "")
    while True:
        while b"\0" not in rest:
            more = asked.read1(65536)
            if not more:
                return
            rest += more
        text, _, rest = rest.partition(b"\0")
        count += 1
        status, name = 0, "<input %d>" % count
        try:
            source = text.decode("utf-8", "replace")
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
            tree = ast.parse(source, name)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, name, "exec"), space)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), name, "eval"), space)
                if value is not None:
                    print(repr(value))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            status = 1
            trace = error.__traceback__
            while trace is not None and trace.tb_frame.f_code.co_filename != name:
                trace = trace.tb_next
            traceback.print_exception(type(error), error, trace)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        os.write(told, b"%d\0" % (status & 255))
_main()
"""

# name -> (its command, whether SIGINT brings it back to its senses)
PROGRAMS = {
    "bash": (("bash", "--norc", "--noprofile", "-c", _BASH), False),
    "python": (("python3", "-c", _PYTHON), True),
}
