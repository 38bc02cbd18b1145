"""What runs inside a verifying sandbox: tests in a process that the candidate's code never enters.

Python >= 3.8, standard library only: the sources are sent into the sandbox. `cases` is the trusted process, holds the
tests and decides; `remote` is its view of the candidate's process, `child` that process; `codec` what passes between
them."""
