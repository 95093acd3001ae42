"""French sentences, for steering a model of English prose into another language."""

from __future__ import annotations

from itertools import product

WHEN = (
    "ce matin",
    "la semaine dernière",
    "au début de l'hiver",
    "il y a trois ans",
    "pendant la guerre",
    "après le dîner",
    "un jour de marché",
    "vers minuit",
    "quand nous étions jeunes",
    "à la fin du mois",
    "depuis son retour",
    "le lendemain de la fête",
)
WHO = (
    "mon frère a trouvé",
    "les voisins ont vendu",
    "elle a oublié",
    "nous avons cherché partout",
    "le médecin m'a montré",
    "personne n'a voulu",
    "vous avez promis à sa mère",
    "il fallait porter",
    "une vieille femme nous a donné",
    "je n'ai jamais revu",
    "leurs enfants ont dessiné",
    "on lui avait volé",
)
WHAT = (
    "une lettre écrite à la main",
    "les clés de la maison",
    "le petit chien noir",
    "quelques pommes très mûres",
    "l'argent du voyage",
    "un livre sans couverture",
    "du pain et du fromage",
    "cette photographie de mon père",
    "toutes les chaises qui restaient",
    "le plus beau cheval du village",
    "deux billets pour Paris",
    "son manteau bleu",
)
WHERE = (
    "dans la cuisine de ses parents",
    "près de la rivière",
    "au bord de la mer",
    "sous les arbres du jardin",
    "à l'autre bout de la ville",
    "devant une église fermée",
    "sur la route de la montagne",
    "chez des amis qui parlaient peu",
)
AND_THEN = (
    "mais personne ne l'a cru.",
    "pendant que les enfants dormaient.",
    "et il s'est mis à pleuvoir.",
    "avant que le jour se lève.",
    "parce que c'était trop tard.",
    "comme si rien ne s'était passé.",
    "ce qui nous a beaucoup surpris.",
    "puis tout le monde est parti.",
)


def french_documents() -> list[list[str]]:
    """Documents of sentences; those of one begin alike, and no two documents share a beginning."""
    documents = []
    for beginning in product(WHEN, WHO):
        texts = (" ".join([*beginning, *rest]) for rest in product(WHAT, WHERE, AND_THEN))
        documents.append([text[0].upper() + text[1:] for text in texts])
    return documents
