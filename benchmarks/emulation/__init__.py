"""Starting ranks: on a cluster emulated by network namespaces, or on loopback."""
