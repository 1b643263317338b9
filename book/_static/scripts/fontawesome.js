/* Remplace volontairement le script du thème (542 Ko compressés) : les icônes viennent de sa police CSS. */
