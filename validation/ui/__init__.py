"""`saeuron try`: a page on loopback that draws with an artifact, and shows where its features fire."""
