"""Other hosts: which they are, how a program is started on them, and what crosses to them."""
