"""La version du paquet, que l'on peut lire sans importer le reste."""

__version__ = "0.1.0"
