//! What has been said so far.

use allotrope_engine::Message;

/// A conversation: a system message, if there is one, then questions and answers in turn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conversation {
    system: Option<String>,
    turns: Vec<(String, String)>,
}

impl Conversation {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// Forgets the questions and answers; the system message stays.
    pub(super) fn reset(&mut self) {
        self.turns.clear();
    }

    /// The messages of the conversation and a question that is to be answered.
    pub(super) fn with_question(&self, question: &str) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let turns = self
            .turns
            .iter()
            .flat_map(|(question, answer)| [Message::new("user", question), Message::new("assistant", answer)]);
        system.chain(turns).chain([Message::new("user", question)]).collect()
    }

    /// Adds a question and as much of its answer as was shown. If nothing was shown, the question counts as not asked.
    pub(super) fn add(&mut self, question: &str, answer: String) {
        if !answer.is_empty() {
            self.turns.push((question.to_owned(), answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles_and_texts(conversation: &Conversation) -> Vec<String> {
        let messages = conversation.with_question("now");
        messages.iter().map(|message| format!("{}: {}", message.role, message.content)).collect()
    }

    #[test]
    fn messages_alternate_after_the_system_message() {
        let mut conversation = Conversation::new(Some("be brief".to_owned()));
        conversation.add("a", "b".to_owned());
        conversation.add("not answered", String::new());
        conversation.add("c", "d".to_owned());
        assert_eq!(
            roles_and_texts(&conversation),
            ["system: be brief", "user: a", "assistant: b", "user: c", "assistant: d", "user: now"]
        );
        conversation.reset();
        assert_eq!(roles_and_texts(&conversation), ["system: be brief", "user: now"]);
        assert_eq!(roles_and_texts(&Conversation::new(None)), ["user: now"]);
    }
}
