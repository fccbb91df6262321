//! Plots as PNG. Texts are set in a font that comes with the program, so that a plot does not depend on the machine's.

use std::sync::Arc;

use resvg::{tiny_skia, usvg};

use crate::error::TaskError;

/// Pixels for each unit of the drawing: plots are looked at on dense screens too.
const SCALE: f32 = 2.0;

/// Draws an SVG.
///
/// # Errors
/// If it is none, or can't be drawn.
pub(super) fn png(svg: &str) -> Result<Vec<u8>, TaskError> {
    let failed = |error: &dyn std::fmt::Display| TaskError::Message(format!("drawing a plot: {error}"));
    let mut options = usvg::Options::default();
    let fonts = Arc::make_mut(&mut options.fontdb);
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().next().and_then(|face| Some(face.families.first()?.0.clone()));
    let family = family.ok_or_else(|| failed(&"the font has no name"))?;
    fonts.set_sans_serif_family(&family);
    options.font_family = family;
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| failed(&error))?;
    let size = tree.size().to_int_size().scale_by(SCALE).ok_or_else(|| failed(&"it has no size"))?;
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height()).ok_or_else(|| failed(&"it is too large"))?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pixels(text: &str) -> Vec<u8> {
        let svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='80' height='40'><style>.a {{ fill: #ff0000; font-size: 20px }}</style>\
             <text x='4' y='30' class='a' font-family='sans-serif'>{text}</text></svg>"
        );
        let bytes = png(&svg).unwrap();
        assert_eq!(bytes, png(&svg).unwrap());
        let image = tiny_skia::Pixmap::decode_png(&bytes).unwrap();
        assert_eq!((image.width(), image.height()), (160, 80));
        image.data().to_vec()
    }

    #[test]
    fn texts_are_drawn_without_any_font_of_the_system() {
        let red = |data: &[u8]| data.chunks_exact(4).filter(|pixel| pixel[0] > 200 && pixel[1] < 50).count();
        assert_eq!(red(&pixels("")), 0);
        for character in ["O", "µ", "×", "–", "−", "%", "…", "2"] {
            let drawn = pixels(character);
            assert!(red(&drawn) > 10, "{character}");
            // A box stands for what the font lacks, the same for all.
            assert_ne!(drawn, pixels("\u{4e00}"), "{character}");
        }
    }

    #[test]
    fn what_is_no_drawing_is_an_error() {
        assert!(png("<svg").unwrap_err().to_string().contains("drawing a plot"));
    }
}
