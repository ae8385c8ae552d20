"""How the extension is built: from finding the compilers to one shared library."""
