"""Commands of `saeuron`, one module each; torch is imported only once a command runs."""
