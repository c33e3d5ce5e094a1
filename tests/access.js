// What WCAG 2.2 AA asks of a page and a browser can measure, as a list of what fails; run in the page.
(() => {
  const problems = [], add = (what, element, more = "") => problems.push(
    `${what}${more && " " + more}: <${element.tagName.toLowerCase()} class="${element.getAttribute("class") || ""}"> ` +
    (element.textContent || element.getAttribute("src") || "").trim().replace(/\s+/g, " ").slice(0, 60))
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true})

  function rgba(color) {  // of any notation, by painting it
    canvas.clearRect(0, 0, 1, 1)
    canvas.fillStyle = color
    canvas.fillRect(0, 0, 1, 1)
    const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data
    return [red, green, blue, alpha / 255]
  }

  const over = (above, below) => [0, 1, 2].map(n => above[n] * above[3] + below[n] * (1 - above[3])).concat(1)

  function ground(element) {  // what is painted behind an element's text
    const layers = []
    for (let each = element; each; each = each.parentElement) {
      const color = rgba(getComputedStyle(each).backgroundColor)
      if (color[3]) layers.push(color)
      if (color[3] == 1) break
    }
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark") && matchMedia("(prefers-color-scheme: dark)").matches
    return layers.reverse().reduce((below, above) => over(above, below), dark ? [18, 18, 18, 1] : [255, 255, 255, 1])
  }

  function light(color) {
    const [red, green, blue] = color.slice(0, 3).map(value => value / 255).map(
      value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
  }

  function contrast(one, other) {
    const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b)
    return (bright + 0.05) / (dark + 0.05)
  }

  function opacity(element) {
    let value = 1
    for (let each = element; each; each = each.parentElement) value *= getComputedStyle(each).opacity
    return value
  }

  const isSeen = element => element.checkVisibility({visibilityProperty: true, opacityProperty: true}) &&
    element.getBoundingClientRect().width > 1 && element.getBoundingClientRect().height > 1

  for (const element of document.querySelectorAll("details")) element.open = true
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  let seen = 0
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement
    if (!texts.currentNode.data.trim() || !isSeen(element) || element.closest("script, style, [disabled], svg, math")) continue
    seen += 1
    const style = getComputedStyle(element), size = parseFloat(style.fontSize), below = ground(element)
    const color = rgba(style.color)
    color[3] *= opacity(element)
    const needed = size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5
    const ratio = contrast(over(color, below), below)
    if (ratio < needed - 0.005) add(`contrast ${ratio.toFixed(2)}`, element, `${style.color} on rgb(${below.slice(0, 3).map(Math.round)})`)
    const count = pattern => (texts.currentNode.data.match(pattern) || []).length
    if (count(/[가-힣]/g) > count(/[a-z]/gi) && !element.closest("code, pre") && element.closest("[lang]")?.lang != "ko") add("Korean without lang=ko", element)
  }

  const name = element => [element.getAttribute("aria-label"), element.innerText, element.title, element.alt,
    ...[...element.querySelectorAll("img, svg")].map(each => each.alt || each.getAttribute("aria-label")),
    ...[...(element.labels || [])].map(each => each.innerText)].filter(Boolean).join(" ").trim()
  for (const element of document.querySelectorAll("a[href], button, input, select, textarea, summary, [role=button]"))
    if (element.checkVisibility({visibilityProperty: true}) && !element.closest("[aria-hidden=true]") && !name(element)) add("control without a name", element)
  for (const element of document.querySelectorAll("img"))
    if (!element.hasAttribute("alt") || !element.alt && element.getAttribute("role") != "presentation") add("picture without words", element)
  for (const element of document.querySelectorAll("svg"))
    if (!element.closest("[aria-hidden=true]") && !(element.getAttribute("role") == "img" && (element.querySelector("title") || element.getAttribute("aria-label"))))
      add("drawing without words", element)
  for (const element of document.querySelectorAll("main p a[href], main li a[href], main td a[href]")) {
    const around = element.parentElement
    if (element.closest("nav") || !isSeen(element) || around.innerText.trim() == element.innerText.trim()) continue
    if (!getComputedStyle(element).textDecorationLine.includes("underline")) add("link that only its colour tells", element)
  }
  for (const element of document.querySelectorAll("input:not([type=checkbox], [type=radio])")) {
    const style = getComputedStyle(element)
    if (isSeen(element) && contrast(over(rgba(style.borderTopColor), ground(element.parentElement)), ground(element.parentElement)) < 3)
      add("box without an edge", element, style.borderTopColor)
  }

  let last = 0
  const headings = [...document.querySelectorAll("main :is(h1, h2, h3, h4, h5, h6)")].filter(each => each.checkVisibility())
  for (const element of headings) {
    const level = +element.tagName[1]
    if (level > last + 1) add(`heading of level ${level} after ${last}`, element)
    last = level
  }
  if (headings.filter(each => each.tagName == "H1").length != 1) problems.push("not one h1 in main")
  if (!document.title.trim()) problems.push("no title")
  if (!document.documentElement.lang) problems.push("no language")
  const ids = [...document.querySelectorAll("[id]")].map(each => each.id)
  for (const id of new Set(ids.filter((each, place) => ids.indexOf(each) != place))) problems.push(`two elements are #${id}`)
  return {problems: [...new Set(problems)], seen, lang: document.documentElement.lang, width: document.scrollingElement.scrollWidth}
})()
