"""Whether a page can be read: a JavaScript expression for `chromium.Tab.value`."""

CONTRASTS = """(() => {  // of every text and every bar with what lies behind it, by WCAG's formula
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const luminance = colour => {
        const [r, g, b] = colour.match(/[0-9.]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = element => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === 'rgba(0, 0, 0, 0)' ? paper(element.parentElement) : colour;
    };
    const contrast = (colour, element) => {
        const [dark, light] = [luminance(colour), luminance(paper(element))].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const texts = [...document.querySelectorAll('body *')].filter(element => element.checkVisibility()
        && [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    const bars = [...document.querySelectorAll('.bar i')];
    return {
        texts: texts.map(e => [e.textContent.slice(0, 30), contrast(getComputedStyle(e).color, e)]),
        bars: bars.map(e => contrast(getComputedStyle(e).backgroundColor, e.parentElement)),
    };
})()"""
"""`{texts: [[beginning, contrast]], bars: [contrast]}`; a contrast is from 1 to 21."""
