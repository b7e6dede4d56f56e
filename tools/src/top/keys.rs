//! The keys.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Tab,
    BackTab,
    Backspace,
    /// Ctrl-C.
    Interrupt,
    Char(char),
}

impl Key {
    /// Returns the key of an event, if it means something.
    pub(super) fn of(event: &KeyEvent) -> Option<Self> {
        if event.kind == KeyEventKind::Release {
            return None;
        }
        if event.modifiers.contains(KeyModifiers::CONTROL) {
            return match event.code {
                KeyCode::Char('c') => Some(Self::Interrupt),
                KeyCode::Char('f') => Some(Self::PageDown),
                KeyCode::Char('b') => Some(Self::PageUp),
                KeyCode::Char('h') => Some(Self::Backspace),
                _ => None,
            };
        }
        match event.code {
            KeyCode::Up => Some(Self::Up),
            KeyCode::Down => Some(Self::Down),
            KeyCode::Left => Some(Self::Left),
            KeyCode::Right => Some(Self::Right),
            KeyCode::PageUp => Some(Self::PageUp),
            KeyCode::PageDown => Some(Self::PageDown),
            KeyCode::Home => Some(Self::Home),
            KeyCode::End => Some(Self::End),
            KeyCode::Enter => Some(Self::Enter),
            KeyCode::Esc => Some(Self::Escape),
            KeyCode::Tab => Some(Self::Tab),
            KeyCode::BackTab => Some(Self::BackTab),
            KeyCode::Backspace => Some(Self::Backspace),
            KeyCode::Char(c) if !event.modifiers.contains(KeyModifiers::ALT) => Some(Self::Char(c)),
            _ => None,
        }
    }
}

/// The list of keys that `?` shows.
pub(super) const HELP: &[(&str, &str)] = &[
    ("1-8, Tab", "nodes, jobs, services, events, volumes, schedules, …"),
    ("j k, arrows", "move; PgUp and PgDn by a page, g and G to the ends"),
    ("Enter", "open: tasks, attempts, replicas, jobs of a workflow, runs, …"),
    ("Esc", "go back"),
    ("/", "filter a table or search a text; n, N: next, previous"),
    ("l", "logs of a job, task, attempt, service or replica"),
    ("d", "describe: what `podmesh job` and the like print"),
    ("a", "jobs: only active ones, or all"),
    ("o", "tasks: only those in one state, or all"),
    ("x", "cancel a job or workflow"),
    ("s  r  R", "scale, restart or roll back a service"),
    ("c  u  D", "cordon, uncordon or drain a node"),
    ("p", "pause or resume a schedule or queue"),
    ("q, Ctrl-C", "quit"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_c_interrupts_and_other_letters_with_control_mean_nothing() {
        let key = |code, modifiers| Key::of(&KeyEvent::new(code, modifiers));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Interrupt));
        assert_eq!(key(KeyCode::Char('x'), KeyModifiers::CONTROL), None);
        assert_eq!(key(KeyCode::Char('x'), KeyModifiers::NONE), Some(Key::Char('x')));
        assert_eq!(key(KeyCode::Char('G'), KeyModifiers::SHIFT), Some(Key::Char('G')));
    }
}
